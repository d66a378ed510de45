"""Channels of the images that an encoder takes: three, or one where all images are grey."""

from __future__ import annotations

from typing import Protocol

from fastmoco.flags import ConfigError
from pipelines.augmentation import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD

CHANNELS = (3, 1)
"""Numbers of channels that there are, the usual one first."""


class _Images(Protocol):
    """A shard set."""

    @property
    def channels(self) -> int: ...
    @property
    def path(self) -> object: ...


def averaged(values: tuple[float, ...]) -> tuple[float]:
    """Mean or standard deviation for one channel: the average of those of red, green and blue."""
    return (round(sum(values) / len(values), 6),)


def usual_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images where nothing else is said: ImageNet's, or their averages."""
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)


def check_images(channels: int, what: str, *sets: _Images) -> None:
    """Raise ConfigError for a set with images in colour where those of one channel are wanted.

    Args:
        channels: of the wanted images.
        what: what wants them, for the message: a flag or an encoder.
        sets: the sets.
    """
    for each in sets:
        if channels == 1 and each.channels != 1:
            raise ConfigError(
                f"{what} takes images of one channel, and {each.path} has images in colour, or was packed before sets "
                "recorded it (fastmoco info): give a set of grey images, or an encoder of three channels"
            )
