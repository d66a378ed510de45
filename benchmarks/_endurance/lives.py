"""The processes of one start of a training, seen from outside: launched, found, signalled, and ended without a rest."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "FASTMOCO_LIFE"  # environment variable by which a start's processes are known, whoever their parent is by then
HANDED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that torchrun hands on to the ranks. Without the option SIGUSR1 ends torchrun itself."""


def torchrun(ranks: int, rendezvous: str, restarts: int, module: Sequence[object]) -> list[str]:
    """The command line of torchrun for several ranks on this machine.

    Args:
        ranks: number of ranks.
        rendezvous: `static` or `c10d`.
        restarts: how often torchrun may restart the ranks.
        module: of python: its name, and its flags.
    """
    port = free_port()
    meet = ["--master-port", port] if rendezvous == "static" else ["--rdzv-endpoint", f"127.0.0.1:{port}"]
    line = ["-m", "torch.distributed.run", "--nproc-per-node", ranks, "--max-restarts", restarts]
    line += ["--rdzv-backend", rendezvous, *meet, "--signals-to-handle", HANDED_ON, "-m", *module]
    return [sys.executable, *map(str, line)]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Life:
    """One start of a command, with all processes that descend from it.

    Args:
        line: command line.
        log: file for what all of them print.
        variables: further environment variables.

    Attributes:
        code: exit code, None while it runs; negative after a signal.
        began: `time.monotonic()` of the start.
    """

    def __init__(self, line: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {}), MARK: self._mark}
        self.began = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        self.launcher = self._process.pid

    @property
    def code(self) -> int | None:
        """See the class."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait for the launcher's end; its exit code, or None if it goes on."""
        try:
            return self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def processes(self) -> dict[int, int | None]:
        """The processes that live, by id: the rank, None for those that are not ranks (torchrun itself)."""
        wanted, found = f"{MARK}={self._mark}".encode(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # it has ended, or is another user's
            if wanted in variables and state != "Z":
                rank = next((v for v in variables if v.startswith(b"RANK=")), None)
                found[int(folder.name)] = None if rank is None else int(rank[5:])
        return found

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that live, by rank."""
        return {rank: pid for pid, rank in self.processes().items() if rank is not None}

    def end(self) -> None:
        """Kill whatever lives."""
        while alive := list(self.processes()):
            for pid in alive:
                send(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.05)
        self._process.wait()


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; whether the process was there to take it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
