"""Errors of the pipelines."""

from __future__ import annotations

from shards.errors import UserError


class PipelineError(UserError, ValueError):
    """A pipeline cannot be built or cannot continue. The message names the value and the remedy."""


class TooManyBadImages(PipelineError):
    """More distinct bad images than the run bears; the message names their number, causes, file and the remedy."""

    exit_code = 1
    one_rank = True  # ranks read different images
