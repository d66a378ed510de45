"""Errors that end a run early."""

from __future__ import annotations

from shards.errors import UserError


class TrainingError(UserError, RuntimeError):
    """The run cannot continue. The message says why and what to do."""

    exit_code = 1


class Stopped(UserError):
    """The run was asked to stop; its state is saved."""

    exit_code = 130


class FolderInUse(UserError):
    """Another process writes to the run folder."""
