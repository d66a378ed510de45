"""Errors that end a run early."""

from __future__ import annotations

from shards.errors import UserError


class TrainingError(UserError, RuntimeError):
    """The run cannot continue. The message says why and what to do."""

    exit_code = 1


class NotFinite(TrainingError):
    """A state has a value that is infinite or not a number, so it was not saved. The message names it."""


class Unsaved(TrainingError):
    """The run was asked to stop, but its state could not be saved. The message says what is lost."""

    one_rank = True  # rank 0 saves


class Stopped(UserError):
    """The run was asked to stop; its state is saved.

    Args:
        message: after which step, and how to continue.
        stopped_by: number of the signal that asked; 0 where a callback did.
    """

    def __init__(self, message: str, stopped_by: int = 0) -> None:
        super().__init__(message)
        self.stopped_by = stopped_by


class FolderInUse(UserError):
    """Another process writes to the run folder."""
