"""One agreement of all ranks before each step: whether to go on, and whether to save first.

It is exchanged on the CPU by a gloo group of its own, so that no GPU is read for it and a rank that waits can be told
from one that computes.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fastmoco.ranks.heartbeat import STEPS, WAITS
from fastmoco.ranks.world import World

_EARLY, _SIGNAL, _FAILED = 1, 100, 1000  # the first of each kind's numbers; the greatest of all ranks' holds


@dataclass(frozen=True)
class Ballot:
    """What one rank wants, or what all have agreed on.

    Attributes:
        early: End the run early without an error, as a callback may.
        signal: Number of the signal that asks to stop; 0 for none.
        failed: The rank that has failed and cannot make the next step; -1 for none.
        save: Save the state first, although no stop is wanted.
    """

    early: bool = False
    signal: int = 0
    failed: int = -1
    save: bool = False

    @property
    def leaves(self) -> bool:
        """Whether the next step is not to be made."""
        return self.early or self.signal > 0 or self.failed >= 0

    @property
    def cause(self) -> str:
        """What the stop is for: the signal's name."""
        return signal.Signals(self.signal).name if self.signal else "ended early"

    def _numbers(self) -> list[int]:
        if self.failed >= 0:
            return [_FAILED + self.failed, int(self.save)]
        return [_SIGNAL + self.signal if self.signal else _EARLY * self.early, int(self.save)]

    @staticmethod
    def _of(leave: int, save: int) -> Ballot:
        if leave >= _FAILED:
            return Ballot(failed=leave - _FAILED, save=bool(save))
        if leave >= _SIGNAL:
            return Ballot(signal=leave - _SIGNAL, save=bool(save))
        return Ballot(early=bool(leave), save=bool(save))


class Votes:
    """The votes of one run. All ranks create it, and call it equally often.

    In round k = 1, 2, 4, … a rank sends what it knows to the rank k places on, and takes the greater of that and what
    comes from k places before. So N ranks need log2 N messages one after the other: 1 for two ranks and 8 for 256,
    where gloo's own all-reduce, a ring, needs 510, which is about 10 ms of a step at 20 μs each. On GPUs the host runs
    ahead, so that its messages cost nothing as long as the step's launches and they take less than the step.

    Args:
        here: This rank.
    """

    def __init__(self, here: World) -> None:
        self._here = here
        self._group: dist.ProcessGroup | None = None
        if here.size > 1:
            group = dist.new_group(backend="gloo", timeout=here.timeout)
            assert isinstance(group, dist.ProcessGroup)  # an int stands for a group without this rank
            self._group = group

    def __call__(self, ballot: Ballot, step: int) -> Ballot:
        """Vote, and return what all ranks have agreed on: a failure goes before a signal, and that before the rest.

        Args:
            ballot: What this rank wants.
            step: Number of steps done, for messages.

        Raises:
            RuntimeError: Of gloo: another rank has ended, or has not voted within the time limit.
        """
        if self._group is None:
            return ballot
        heartbeat = self._here.heartbeat
        if heartbeat:
            heartbeat.does(WAITS, step, votes=1)
        known, rank, size = torch.tensor(ballot._numbers()), self._here.rank, self._here.size
        heard, distance = torch.empty_like(known), 1
        while distance < size:
            sent = dist.isend(known, (rank + distance) % size, self._group)
            dist.recv(heard, (rank - distance) % size, self._group)
            assert sent is not None
            sent.wait()
            known = torch.maximum(known, heard)
            distance *= 2
        if heartbeat:
            heartbeat.does(STEPS, step)
        return Ballot._of(*known.tolist())
