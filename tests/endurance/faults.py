"""Making a fault happen to a run that is under way."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from _endurance.disk import full
from _endurance.lives import Life, send
from tests.endurance.plan import Case
from tests.support.faulty import Faults, FaultyServer

SIGNALS = {"term": signal.SIGTERM, "usr1": signal.SIGUSR1, "int": signal.SIGINT}
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
