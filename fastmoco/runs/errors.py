"""How a run ends before its end."""

from __future__ import annotations

from shards.errors import UserError


class TrainingError(UserError, RuntimeError):
    """The run cannot continue. The message says why and what to do."""

    exit_code = 1


class Stopped(UserError):
    """The run was asked to stop; its state is in a checkpoint."""

    exit_code = 130
