"""Errors of the pipelines."""

from __future__ import annotations

from shards.errors import UserError


class PipelineError(UserError, ValueError):
    """A pipeline that cannot be built or go on as asked for. The message names the value and the remedy."""
