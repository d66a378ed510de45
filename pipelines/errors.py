"""Errors of the pipelines."""

from __future__ import annotations

from shards.errors import UserError


class PipelineError(UserError, ValueError):
    """A pipeline cannot be built or cannot continue. The message names the value and the remedy."""
