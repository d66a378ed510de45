"""How a run ends before its end."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """The run cannot go on. The message says why and what to do."""


class Stopped(Exception):
    """The run was asked to stop; its state is in a checkpoint."""
