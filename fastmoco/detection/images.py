"""The detector's input: photographs decoded, resized, flipped; a pure function of (seed, epoch, photograph).

H, W: height and width of the input image. N: its objects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch.nn import functional as F

from fastmoco.detection.errors import BrokenImage
from fastmoco.detection.photos import Photo


@dataclass(frozen=True)
class Sample:
    """A photograph, ready for the detector.

    Attributes:
        image: uint8[3, H, W], RGB.
        target: `boxes` float32[N, 4], `labels` int64[N], and `masks` uint8[N, H, W] if masks are trained. Empty for a
            test photograph.
        photo: its annotation.
        size: height and width of the image in the file.
    """

    image: torch.Tensor
    target: dict[str, torch.Tensor]
    photo: Photo
    size: tuple[int, int]


@dataclass(frozen=True)
class Reader:
    """Reads photographs at the sizes of a transfer.

    Attributes:
        min_sizes: short sides of training images, one drawn for each.
        test_size: short side of test images.
        max_size: limit of the long side.
        masks: whether targets have masks.
        seed: seed of sizes and flips.
    """

    min_sizes: tuple[int, ...]
    test_size: int
    max_size: int
    masks: bool
    seed: int

    def training(self, photo: Photo, place: int, epoch: int) -> Sample:
        """A training photograph, with the size and the flip drawn from (seed, epoch, index in the set).

        Raises:
            BrokenImage: the file cannot be decoded, or has another size than its annotation.
        """
        # both draws come from a generator of the photograph's own, so threads may read in any order
        draws = np.random.default_rng((self.seed, epoch, place))
        short, flipped = self.min_sizes[draws.integers(len(self.min_sizes))], bool(draws.random() < 0.5)
        picture = decode(photo)
        height, width = picture.height, picture.width
        image = _to_tensor(self._resized(picture, short))
        scale = torch.tensor([image.shape[2] / width, image.shape[1] / height] * 2, dtype=torch.float32)
        # as in detectron2: what of a box is outside of the photograph cannot be seen
        boxes = photo.boxes.clip(0, np.array([width, height] * 2, np.float32))
        trained = photo.trained & (boxes[:, 2:] > boxes[:, :2]).all(1)
        target = {
            "boxes": torch.from_numpy(boxes[trained]) * scale,
            "labels": torch.from_numpy(photo.labels[trained]),
        }
        if self.masks:
            found = torch.from_numpy(photo.masks(trained, height, width))
            # nearest neighbour, the default: a mask between 0 and 1 would be no mask
            target["masks"] = F.interpolate(found[:, None], size=image.shape[1:])[:, 0]
        return Sample(*(_flipped(image, target) if flipped else (image, target)), photo, (height, width))

    def testing(self, photo: Photo) -> Sample:
        """A test photograph; raises BrokenImage for the same reasons."""
        picture = decode(photo)
        image = _to_tensor(self._resized(picture, self.test_size))
        return Sample(image, {}, photo, (picture.height, picture.width))

    def _resized(self, picture: Image.Image, short: int) -> Image.Image:
        # Pillow's bilinear filter, as in detectron2; torch's without antialiasing would differ when shrinking
        height, width = resized_shape(picture.height, picture.width, short, self.max_size)
        return picture.resize((width, height), Image.Resampling.BILINEAR)


def decode(photo: Photo) -> Image.Image:
    """Decode a photograph to RGB, upright; raises BrokenImage."""
    with _opened(photo) as file:
        picture = ImageOps.exif_transpose(file).convert("RGB")
    _check_size(photo, picture.width, picture.height)
    return picture


def check(photo: Photo, masks: bool) -> None:
    """Decode a photograph at the lowest cost, an eighth of its size for a JPEG, and, for masks, its run-length codes.

    Raises:
        BrokenImage: as `decode` and `Photo.masks` raise it.
    """
    with _opened(photo) as file:
        width, height = file.size
        if file.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # the turns by a quarter
            width, height = height, width
        file.draft("RGB", (max(1, width // 8), max(1, height // 8)))
        file.load()
    _check_size(photo, width, height)
    if masks and photo.outlines is not None:
        photo.masks(np.array([isinstance(outline, dict) for outline in photo.outlines], bool), height, width)


@contextlib.contextmanager
def _opened(photo: Photo) -> Iterator[Image.Image]:
    try:
        with Image.open(photo.path) as file:
            yield file
    except FileNotFoundError as error:
        raise BrokenImage(f"there is no photograph {photo.path}, which the annotations name") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenImage(f"{photo.path} cannot be decoded: {error}; replace it, or drop it from the set") from error


def _check_size(photo: Photo, width: int, height: int) -> None:
    if photo.height and (photo.height, photo.width) != (height, width):
        raise BrokenImage(
            f"{photo.path} has {width} × {height} pixels, but its annotation says {photo.width} × {photo.height}; "
            "correct one of them"
        )


def resized_shape(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Height and width with the short side `short`, or smaller if the long side would exceed `longest`."""
    # as detectron2's ResizeShortestEdge, halves included
    scale = min(short / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _flipped(image: torch.Tensor, target: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    mirrored = target | {"boxes": torch.stack([width - right, top, width - left, bottom], 1)}
    if "masks" in target:
        mirrored["masks"] = target["masks"].flip(2)
    return image.flip(2), mirrored
