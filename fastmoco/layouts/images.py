"""What files say of the images that their encoder takes: side, channels, normalisation and scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmoco import scalings
from fastmoco.channels import CHANNELS
from fastmoco.layouts.files import MADE_BY, LayoutError


def of_images(recorded: Mapping[str, Any], of_sets: Sequence[Any] | None, place: Path | None) -> dict[str, Any]:
    """Size, mean, std, scaling and bits of an encoder's images, as fields of EncoderWeights.

    Args:
        recorded: settings, or a checkpoint of fine-tuning; older ones have the size alone.
        of_sets: `scaling` as `scalings.record_of` records it for the sets of the training.
        place: the file, for the error; None of a state in memory.

    Raises:
        LayoutError: the scaling is damaged.
    """
    of_channels = {name: tuple(value) for name in ("mean", "std") if (value := recorded.get(name))}
    try:
        scaling = scalings.common(of_sets)
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"{place or 'state'}: the scaling of 16-bit images is damaged ({str(of_sets)[:80]}); give another file"
        ) from error
    bits = scalings.bits_of(of_sets)
    return {"image_size": recorded.get("image_size"), "scaling": scaling, "bits": bits, **of_channels}


def said_of_images(path: Path, content: Any) -> dict[str, Any]:
    """What a file that this program has exported says of its encoder's images; empty for others."""
    said = content.get(MADE_BY) if isinstance(content, dict) else None
    if said is None:
        return {}
    if not isinstance(said, dict) or not _fits(said):
        raise LayoutError(f"{path} has damaged metadata: {MADE_BY} is {said!r}; export it again")
    about = of_images(said, [said.get("scaling")], path)
    return about | {"bits": max(about["bits"], said.get("bits", 8))}


def _fits(said: dict[str, Any]) -> bool:
    size, channels = said.get("image_size"), said.get("channels", 3)  # files of earlier versions have three
    if not (size is None or (type(size) is int and 0 < size < 2**16)) or channels not in CHANNELS:
        return False
    if said.get("bits", 8) not in (8, 16):
        return False
    for each in (said.get("mean"), said.get("std")):
        numbers = isinstance(each, list) and len(each) == channels and all(type(value) is float for value in each)
        if each is not None and not (numbers and all(map(math.isfinite, each))):
            return False
    return True
