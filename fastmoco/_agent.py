"""A rank ends with torchrun's agent, which started it.

A rank whose agent is killed would train on alone, beside the run that is started in its place.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
_SET_BY = "_FASTMOCO_RANK"
"""A variable with the rank's process id: its own child processes are no ranks."""


def end_with_agent() -> None:
    """Under torchrun, let the kernel kill this process when its parent, the agent, ends. Elsewhere do nothing.

    On Linux alone. It is called before anything heavy is imported, as an agent may be killed at any time.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ or _SET_BY in os.environ:
        return
    import ctypes  # which other commands need not wait for

    os.environ[_SET_BY] = str(os.getpid())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _is_orphan(os.getppid()):  # the agent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def _is_orphan(parent: int) -> bool:
    """Whether the parent is the process that adopts orphans. That need not be process 1, nor is process 1 always it."""
    folder = Path("/proc", str(parent))
    try:
        if b"TORCHELASTIC_RUN_ID=" in (folder / "environ").read_bytes():
            return False  # a script that torchrun started instead, and that started this process
        return not Path(os.readlink(folder / "exe")).name.startswith("python")
    except OSError:  # another user's, or no /proc
        return parent == 1
