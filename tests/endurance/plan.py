"""What hits which run, and when: it follows from the seed and the run's number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = ("kill-rank", "kill-agent", "kill-all", "term", "usr1", "int", "pause", "full-disk", "outage")
"""SIGKILL of a rank, of torchrun's agent, of all processes; three ordered stops; SIGSTOP of a rank; a run folder whose
disk is full for a while; a store that is away for a while."""
ANSWERS = ("drop", "silence", "error", "busy", "cut")
"""How a store that is away answers; see `tests.support.faulty`."""


@dataclass(frozen=True)
class Case:
    """One run and its fault.

    Attributes:
        number: of the run.
        kind: of `KINDS`.
        ranks: of the run.
        rendezvous: of torchrun.
        share: the moment, as a share of the time that an undisturbed run takes from its start to its end.
        target: whom a signal goes to: `agent`, `rank N`, `ranks`, or `all`.
        again: how often an ordered stop's signal is repeated.
        seconds: how long a fault lasts that ends by itself; 0 for a rank that is stopped for ever.
        answer: of `ANSWERS`.
    """

    number: int
    kind: str
    ranks: int
    rendezvous: str
    share: float
    target: str = ""
    again: int = 0
    seconds: float = 0.0
    answer: str = ""

    def __str__(self) -> str:
        words = [self.target, f"{self.seconds:.0f} s" if self.seconds else "", self.answer]
        words += [f"sent {self.again + 1} times"] if self.again else []
        told = ", ".join(filter(None, words)) or "for ever"
        return f"{self.number} {self.kind} ({told}), {self.ranks} ranks, {self.rendezvous}"


def case(seed: int, number: int, kinds: tuple[str, ...] = KINDS) -> Case:
    """The case of a number; each kind comes once in as many numbers as there are kinds."""
    order = random.Random(f"{seed} {number // len(kinds)}").sample(kinds, len(kinds))
    kind, chance = order[number % len(kinds)], random.Random(f"{seed} run {number}")
    ranks = chance.choice((2, 3))
    one = f"rank {chance.randrange(ranks)}"
    case = {"ranks": ranks, "rendezvous": chance.choice(("static", "c10d")), "share": chance.random()}
    if kind in ("kill-rank", "pause"):
        case["target"] = one
    elif kind in ("kill-agent", "kill-all"):
        case["target"] = kind.removeprefix("kill-")
    elif kind in ("term", "usr1", "int"):
        case["target"] = chance.choice(("agent", one, "ranks", "all"))
        # the third SIGINT ends a run at once, by design
        case["again"] = chance.randrange(2 if kind == "int" else 4)
    if kind == "pause":
        case["seconds"] = chance.choice((0.0, chance.uniform(1, 8)))
    elif kind == "full-disk":
        case["seconds"] = chance.uniform(2, 10)
    elif kind == "outage":
        case["seconds"], case["answer"] = chance.uniform(5, 60), chance.choice(ANSWERS)
    return Case(number, kind, **case)
