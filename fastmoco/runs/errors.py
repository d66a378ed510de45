"""Errors that end a run early."""

from __future__ import annotations

from shards.errors import UserError


class TrainingError(UserError, RuntimeError):
    """The run cannot continue. The message says why and what to do."""

    exit_code = 1


class NotFinite(TrainingError):
    """A state has a value that is infinite or not a number, so it was not saved. The message names it."""


class Stopped(UserError):
    """The run was asked to stop; its state is saved."""

    exit_code = 130


class FolderInUse(UserError):
    """Another process writes to the run folder."""
