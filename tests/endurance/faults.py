"""Making a fault happen to a run that is under way."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _endurance.lives import Life, send
from tests.endurance.plan import Case
from tests.support.faulty import Faults, FaultyServer

SIGNALS = {"term": signal.SIGTERM, "usr1": signal.SIGUSR1, "int": signal.SIGINT}
DISK = 8 << 20  # bytes of the small disk: the run's folder has about 2 MB
FOR_EVER = 10**9


def strike(case: Case, life: Life, run: Path, server: FaultyServer) -> str:
    """Make the case's fault happen now; a fault that ends by itself has ended when this returns.

    Args:
        case: What to do.
        life: The processes.
        run: The run folder, on a disk of its own for a full disk.
        server: The store that the run reads.

    Returns:
        "" if the fault happened, else why there was nothing to hit.
    """
    if case.kind == "outage":
        server.faults = Faults(case.number, 1.0, (case.answer,), in_row=FOR_EVER, stall=case.seconds)
        life.wait(case.seconds)
        server.faults = Faults()
        return ""
    if case.kind == "full-disk":
        with full(run.parent, life):
            life.wait(case.seconds)
        return ""
    hit = _targets(case, life)
    if not hit:
        return f"no {case.target} is there yet, or any more"
    if case.kind == "pause":
        (rank,) = hit
        send(rank, signal.SIGSTOP)
        if case.seconds:
            time.sleep(case.seconds)
            send(rank, signal.SIGCONT)
    for again in range(case.again + 1):
        for pid in hit:
            if case.kind.startswith("kill"):
                send(pid, signal.SIGKILL)
            elif case.kind in SIGNALS:
                send(pid, SIGNALS[case.kind])
        if again < case.again:
            time.sleep(0.3)
    return ""


def _targets(case: Case, life: Life) -> list[int]:
    agent, ranks = [life.launcher] if life.code is None else [], life.ranks()
    if case.target == "agent":
        return agent
    if case.target == "ranks":
        return list(ranks.values())
    if case.target == "all":
        return [*agent, *ranks.values()]
    number = int(case.target.removeprefix("rank "))
    return [ranks[number]] if number in ranks else []


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own at a folder, if this process may mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        yield
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def full(folder: Path, life: Life) -> Iterator[None]:
    """Fill the small disk at a folder; without one, no process may write further than its files reach."""
    if not folder.is_mount():
        with _limited(life):
            yield
        return
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    yield
    filler.unlink()


@contextmanager
def _limited(life: Life) -> Iterator[None]:
    """Without a small disk: files may have one byte. A write beyond it fails, as on a full disk, but with EFBIG."""
    before = resource.prlimit(0, resource.RLIMIT_FSIZE)
    _set_limits(life, (1, before[1]))
    yield
    _set_limits(life, before)


def _set_limits(life: Life, limits: tuple[int, int]) -> None:
    for pid in life.processes():
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        except ProcessLookupError:
            continue
