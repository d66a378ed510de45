"""Errors of a transfer that the user can fix."""

from __future__ import annotations

from shards.errors import UserError


class DetectionError(UserError, ValueError):
    """A transfer that cannot run. The message names the value, the place and a remedy."""


class BrokenImage(DetectionError):
    """An image, or the outline of an object, that cannot be read; a single rank may meet it."""

    one_rank = True


class NoEvaluation(DetectionError):
    """Too many test photographs cannot be read; raised on all ranks."""
