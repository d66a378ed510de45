"""What the user can mend."""

from __future__ import annotations

from shards.errors import UserError


class DetectionError(UserError, ValueError):
    """A transfer that cannot be made. The message names the value, the place and a remedy."""


class BrokenImage(DetectionError):
    """An image, or an outline in it, that cannot be read; one rank alone may meet it."""

    one_rank = True
