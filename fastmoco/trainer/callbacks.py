"""Functions of the user's that pretraining calls: the interface, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from fastmoco.config import Config, ConfigError

HOOKS = ("on_step", "on_log", "on_checkpoint", "on_end")


class Training:
    """The running training, as callbacks see it.

    Args:
        config: The run's settings.
        folder: The run folder.
        total_steps: Length of the run.
        steps_per_epoch: Steps of an epoch.
        encoder: The query encoder that is being trained, without its head.
        stop: Asks the run to stop.

    Attributes:
        step: Number of steps done.
        encoder: The query encoder that is being trained, without its head, in training mode on its device. Read it; a
            change of its weights is part of the training.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        total_steps: int,
        steps_per_epoch: int,
        encoder: nn.Module,
        stop: Callable[[], None],
    ) -> None:
        self.config, self.folder, self.total_steps, self.encoder = config, folder, total_steps, encoder
        self.step = 0
        self._steps_per_epoch, self._stop = steps_per_epoch, stop

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction of the current one."""
        return self.step / self._steps_per_epoch

    def stop(self) -> None:
        """End the run early: its state is saved, `on_end` is called, and `fastmoco.pretrain` returns the run.

        On all ranks after the current step. The same call without the stop continues from there.
        """
        self._stop()


class Callback:
    """Base class of callbacks; override what you need.

    All methods are called on rank 0 alone, between two steps, so that a file is written or a message sent once. The
    other ranks wait for a slow one at their next exchange. An exception ends the run as other errors do: the state is
    saved first, and the same call continues from there.
    """

    def on_step(self, training: Training) -> None:
        """Called after each step. Nothing has been read from the device for it; reading a tensor waits for the GPU."""

    def on_log(self, training: Training, figures: Mapping[str, float | None]) -> None:
        """Called with each line of metrics.jsonl, every `log_every` steps and after each kNN probe.

        Args:
            training: The training.
            figures: By name: `step`, `epoch` and `loss`, `accuracy` (0 to 1), `lr`, `imgs_per_sec`, `data_wait` (0 to
                1), `queue_fill` (0 to 1), `spread`; or `step`, `epoch` and `knn_top1` (percent). On a GPU they may be
                of the step before.
        """

    def on_checkpoint(self, training: Training, path: Path) -> None:
        """Called when the checkpoint at `path` is complete."""

    def on_end(self, training: Training) -> None:
        """Called once at the end, also of a run that was stopped; not after an error."""


def check_callbacks(callbacks: Sequence[object]) -> None:
    """Raise ConfigError for an object that has none of a callback's methods."""
    for callback in callbacks:
        if isinstance(callback, type) or not any(callable(getattr(callback, name, None)) for name in HOOKS):
            raise ConfigError(f"{callback!r} is no callback: give an object with {' or '.join(HOOKS)}")
