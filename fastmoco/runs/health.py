"""What may end or slow a run of weeks from outside, looked at by a thread: disk, memory, open files, clock, GPU."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.saving import Keeping
from fastmoco.limits import memory_left
from fastmoco.ranks.world import World
from fastmoco.runs.throttling import Throttling
from fastmoco.runs.warnings import passed, warn
from shards.words import duration

EVERY = 30.0
"""Seconds between two looks."""
JUMP = 5.0
"""Seconds between two looks by which the clock may be set. Time services step it only where it is wrong by more than
a tenth of a second; otherwise they change its speed."""
JUMP_SHOWN = 3600.0  # seconds for which a jump stays among the warnings: it has no end of its own
LEAST_MEMORY = 0.03
"""Share of the memory below which the kernel may soon end a process."""
MOST_FILES = 0.9
"""Share of the limit of open files."""


@contextmanager
def watched(here: World, checkpoints: Path, keep: Keeping) -> Iterator[None]:
    """Look at the machine in a thread while the block runs, and warn.

    Args:
        here: this rank.
        checkpoints: folder of the run's checkpoints, whose disk rank 0 looks at.
        keep: which of them are kept.
    """
    looks: list[Callable[[], None]] = [Clock().look, lambda: memory(*memory_left()), open_files]
    if here.is_main:
        looks.append(lambda: disk(checkpoints, keep))
    if here.device.type == "cuda":
        looks.append(Throttling(torch.cuda.get_device_properties(here.device)).look)
    ended = threading.Event()
    thread = threading.Thread(target=_work, args=(looks, ended), name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()  # without waiting for it: a look may hang with its file system


def _work(looks: Sequence[Callable[[], None]], ended: threading.Event) -> None:
    while True:
        for look in looks:
            with suppress(OSError, ValueError):  # a file of the system's that cannot be read says nothing
                if not ended.is_set():
                    look()
        if ended.wait(EVERY):
            return


class Clock:
    """Notices that the wall clock was set, or that the machine slept."""

    def __init__(self) -> None:
        self._offset, self._jumped_at = _offset(), -JUMP_SHOWN

    def look(self) -> None:
        """Warn if the clock was set since the last look."""
        offset = _offset()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) > JUMP:
            self._jumped_at = time.monotonic()
            passed("clock")  # of an earlier one
            way = "forwards" if jump > 0 else "backwards"
            warn(
                "clock",
                f"the clock jumped {duration(abs(jump))} {way}, or the machine slept: times in the log are off, "
                "and keys of object stores may be refused; training itself does not use it. Check the time service "
                "(timedatectl)",
            )
        elif time.monotonic() - self._jumped_at > JUMP_SHOWN:
            passed("clock")


def _offset() -> float:
    return time.time() - time.monotonic()


def memory(total: int, left: int) -> None:
    """Warn if little memory is left, in bytes."""
    if left >= LEAST_MEMORY * total:
        passed("memory")
        return
    warn(
        "memory",
        f"{_gb(left)} of {_gb(total)} of memory are left: the kernel may end this process; end other programs, or give "
        "a smaller --prefetch or fewer --threads",
    )


def open_files() -> None:
    """Warn if few more files can be opened."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = len(os.listdir("/proc/self/fd"))
    if limit == resource.RLIM_INFINITY or number <= MOST_FILES * limit:
        passed("open_files")
        return
    warn("open_files", f"{number} of at most {limit} files are open; raise the limit before the next start: ulimit -n")


def disk(checkpoints: Path, keep: Keeping) -> None:
    """Warn if the checkpoints to come do not fit on their disk.

    Args:
        checkpoints: their folder; nothing is known before the first one is written.
        keep: which of them are kept.
    """
    have = checkpoint.found(checkpoints)
    if not have:
        return
    size = have[0].stat().st_size
    kept = keep.newest
    if keep.most_bytes is not None:
        kept = min(kept, int(keep.most_bytes // max(1, size)))
    coming = 1 + max(0, kept - len(have))  # the oldest is removed once the next is written
    free = shutil.disk_usage(checkpoints).free
    if free >= coming * size:
        passed("disk")
        return
    what = (
        f"the next checkpoint needs {_gb(size)}"
        if coming == 1
        else f"the next {coming} checkpoints need {_gb(coming * size)}"
    )
    warn("disk", f"{_gb(free)} are free on the disk of {checkpoints}, and {what}; make room on it")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
