"""Figures summed on the device between two log lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastmoco.model.moco import Contrast
from fastmoco.ranks.exchange import all_gather_rows
from fastmoco.ranks.world import rank_and_size

_NAMES = ("loss", "accuracy", "spread", "grad_norm", "overflowed")
"""The sums. grad_norm is summed over the steps with a finite gradient, and the others are counted by overflowed."""


class Window:
    """Sums since the last log line. They stay on the device until they are read, so that a step does not wait for it.

    The sums are part of the checkpoint, so that a resumed run logs the same figures.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        self._device = device
        # float64: a resumed run adds to sums that the checkpoint holds as Python's floats, without rounding
        self._sums = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self._steps = 0
        self._of_ranks: torch.Tensor | None = None
        if state is not None:
            rank, size = rank_and_size()
            of_ranks = state.get("sums_of_ranks", [])
            sums = of_ranks[rank] if len(of_ranks) == size else state["sums"]
            self._sums[: len(sums)] = torch.tensor(sums, dtype=torch.float64)  # earlier versions kept three
            self._steps = state["steps"]
        self.forget_time()

    def forget_time(self) -> None:
        """Restart the clock: leave out of the rates what has passed since the last log line."""
        self._started, self._waited, self._timed_steps = time.perf_counter(), 0.0, 0

    def add(self, contrast: Contrast, waited: float) -> None:
        """Add one step.

        Args:
            contrast: the step's figures.
            waited: seconds for which the step waited for its data.
        """
        values, norm = [contrast.loss.detach(), contrast.accuracy, contrast.spread], contrast.grad_norm
        if norm is not None:
            finite = norm.isfinite()
            values += [torch.where(finite, norm, 0.0), ~finite]
        self._sums[: len(values)] += torch.stack([value.double() for value in values])
        self._of_ranks = None
        self._steps += 1
        self._timed_steps += 1
        self._waited += waited

    def gather(self) -> None:
        """Collect the sums of all ranks for `state`; without them, a resumed run has rank 0's on all ranks."""
        self._of_ranks = all_gather_rows(self._sums[None])

    def state(self) -> dict[str, Any]:
        """The sums as plain numbers."""
        of_ranks = {} if self._of_ranks is None else {"sums_of_ranks": self._of_ranks.tolist()}
        return {"sums": self._sums.tolist(), "steps": self._steps, **of_ranks}

    def start_reading(
        self,
        batch_size: int,
        fill: torch.Tensor,
        start_sum: Callable[[torch.Tensor], Callable[[], list[float]]],
        also: Mapping[str, torch.Tensor] | None = None,
    ) -> Callable[[], dict[str, float]]:
        """Start to read the means over the steps and ranks, and empty the window.

        Args:
            batch_size: global batch size.
            fill: the dictionary's fill, a scalar on the device, equal on all ranks.
            start_sum: starts to sum float [N] on the device over the ranks; returns a function that waits for the sums.
            also: other scalars on the device, whose means over the ranks are wanted, by name.

        Returns:
            A function that waits for the means: loss, accuracy, spread, grad_norm (of the steps with a finite
            gradient), overflowed (share of the other steps), queue_fill, those of `also`, imgs_per_sec and data_wait
            (share of the time spent waiting for data). Call it before the next reading starts.
        """
        one = self._sums.new_ones(1)  # summed over the ranks, it counts them
        values = {"queue_fill": fill, **(also or {})}
        means = [self._sums / self._steps, *(value.to(one).view(1) for value in values.values())]
        means += [one * self._waited, one]
        arriving, steps = start_sum(torch.cat(means)), self._timed_steps
        self._sums.zero_()
        self._steps = self._timed_steps = 0
        self._waited = 0.0

        def figures() -> dict[str, float]:
            *sums, ranks = arriving()
            *means, waited = (value / ranks for value in sums)
            # read the clock after the wait for the device: the host may be several steps ahead
            now = time.perf_counter()
            seconds, self._started = now - self._started, now
            named = dict(zip((*_NAMES, *values), means, strict=True))
            named["grad_norm"] /= max(1 - named["overflowed"], 1e-9)  # none of the steps may have had a finite one
            return {**named, "imgs_per_sec": steps * batch_size / seconds, "data_wait": waited / seconds}

        return figures
