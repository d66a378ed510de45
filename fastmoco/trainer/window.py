"""Figures summed on the device between two log lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from fastmoco.model.moco import Contrast

Batch = TypeVar("Batch")
_NAMES = ("loss", "accuracy", "spread")


class Window:
    """Sums since the last log line. They stay on the device until they are read, so that a step does not wait for it.

    The sums are part of the checkpoint, so that a resumed run logs the same figures.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        self._device = device
        # float64: a resumed run adds to sums that the checkpoint holds as Python's floats, without rounding
        self._sums = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self._steps = 0
        if state is not None:
            self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
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
        values = [getattr(contrast, name).detach() for name in _NAMES]
        self._sums += torch.stack(values).double()
        self._steps += 1
        self._timed_steps += 1
        self._waited += waited

    def state(self) -> dict[str, Any]:
        """The sums as plain numbers."""
        return {"sums": self._sums.tolist(), "steps": self._steps}

    def read(self, batch_size: int, mean_over_ranks: Callable[[torch.Tensor], list[float]]) -> dict[str, float]:
        """Means over the steps and ranks; the window is empty afterwards.

        Args:
            batch_size: global batch size.
            mean_over_ranks: maps float [N] on the device to its means over the ranks, on the host.

        Returns:
            loss, accuracy, spread, imgs_per_sec and data_wait (share of the time spent waiting for data).
        """
        *means, waited = mean_over_ranks(torch.cat([self._sums / self._steps, self._sums.new_tensor([self._waited])]))
        # read the clock after the exchange, which waits for the device: the host may be several steps ahead
        seconds = time.perf_counter() - self._started
        figures = dict(zip(_NAMES, means, strict=True))
        figures |= {"imgs_per_sec": self._timed_steps * batch_size / seconds, "data_wait": waited / seconds}
        self._sums.zero_()
        self._steps = 0
        self.forget_time()
        return figures


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, with the seconds spent waiting for it."""
    while True:
        before = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.perf_counter() - before
