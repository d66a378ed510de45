"""The centre crop: the image resized to a short side and cropped in its middle, with torchvision's rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_LONG = 16
"""Sides of a higher ratio are not resized as a whole: 8 x 65,500 pixels would become 256 x 2,096,000."""


@dataclass(frozen=True)
class CentreParams:
    """The regions of a batch's images that are resized to the crop.

    A resize of the region equals a resize of the whole image followed by the crop, if its filter also reads the pixels
    around the region.

    Attributes:
        start: float32[N, 2], top and left in pixels of the image.
        end: float32[N, 2], bottom and right.
    """

    start: np.ndarray
    end: np.ndarray


def centre_params(sizes: np.ndarray, short_side: int, crop: int) -> CentreParams:
    """The regions that `centre_view` shows.

    Args:
        sizes: int32[N, 2], height and width of the images.
        short_side: of the resized image.
        crop: side of the crop.
    """
    places = np.array([_place(height, width, short_side, crop) for height, width in sizes.tolist()])
    resized, corner = places[:, :2], places[:, 2:]
    scale = sizes / resized
    return CentreParams((corner * scale).astype(np.float32), ((corner + crop) * scale).astype(np.float32))


def centre_view(image: torch.Tensor, short_side: int, crop: int) -> torch.Tensor:
    """Resize with an antialiased bilinear filter, and crop.

    Args:
        image: uint8 or float32[C, H, W] with channels-last strides.
        short_side: of the resized image.
        crop: side of the crop.

    Returns:
        [C, crop, crop] of the same type.
    """
    height, width, top, left = _place(image.shape[1], image.shape[2], short_side, crop)
    if height > _LONG * width:
        return centre_view(image.transpose(1, 2), short_side, crop).transpose(1, 2)
    if width > _LONG * height:
        strip = _resized(_strip(image, width, left, crop), height, crop)[:, top : top + crop]
        return strip if image.is_floating_point() else strip.round().to(image.dtype)
    return _resized(image, height, width)[:, top : top + crop, left : left + crop]


def _resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(image[None], [height, width], mode="bilinear", antialias=True, align_corners=False)[0]


def _strip(image: torch.Tensor, width: int, left: int, count: int) -> torch.Tensor:
    """Some columns of an image resized to a width, by the filter of `_resized`: float32[C, H, count] from `left` on."""
    scale = image.shape[2] / width
    support = max(scale, 1.0)
    centres = (left + 0.5 + torch.arange(count, dtype=torch.float64)) * scale
    first, last = max(int(centres[0] - support), 0), min(int(centres[-1] + support) + 1, image.shape[2])
    places = torch.arange(first, last) + 0.5
    weights = (1 - (places[:, None] - centres).abs() / support).clamp(min=0)
    return image[:, :, first:last].float() @ (weights / weights.sum(dim=0)).float()


def _place(height: int, width: int, short_side: int, crop: int) -> tuple[int, int, int, int]:
    """Height and width of the resized image, its long side truncated to whole pixels; top and left of the crop."""
    if height <= width:
        height, width = short_side, int(short_side * width / height)
    else:
        height, width = int(short_side * height / width), short_side
    return height, width, round((height - crop) / 2), round((width - crop) / 2)
