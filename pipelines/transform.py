"""The evaluation's view of one image, for images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD
from pipelines.centre import centre_view
from pipelines.deep import check_scaling, levels
from pipelines.errors import PipelineError
from shards.format.scaling import Scaling
from shards.images.arrays import pixels_16
from shards.images.convert import upright


@dataclass(frozen=True)
class CentreTransform:
    """A callable that resizes an image to a short side, crops its centre and normalises it.

    The result is that of `LabelledPipeline`, which reads shard sets, for the same pixels.

    Attributes:
        image_size: Side S of the crop in pixels.
        resize: Short side before the crop.
        mean: Means of the C channels, in [0, 1]: 3, or 1 for grey images alone.
        std: Standard deviations of the channels, in [0, 1].
        scaling: Of a set with 16 bits: images are uint16, and scaled by it. None: images have 8 bits.
        bits: Of the images: 16 with a scaling. 16 without one is for an encoder that was trained on several sets of
            different scalings: the transform then takes no image before `dataclasses.replace` gives it one.
    """

    image_size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scaling: Scaling | None = None
    bits: int = 8

    def __post_init__(self) -> None:
        if self.scaling is not None:
            object.__setattr__(self, "bits", 16)
        if not 0 < self.image_size <= self.resize:
            raise PipelineError(f"crop {self.image_size} does not fit a short side of {self.resize}")
        check_scaling(self.scaling, len(self.mean))

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """The encoder's input.

        Args:
            image: Of any mode; an EXIF orientation is applied, as in packing. With `scaling` its 16-bit values, uint16
                [H, W] or [H, W, 3], or an image of mode I;16, which is turned upright as well.

        Returns:
            float32 [C, S, S].

        Raises:
            PipelineError: C is 1, and the image has colours; its values have another number of bits; or the scaling of
                16 is not known.
        """
        if self.bits == 16 and self.scaling is None:
            raise PipelineError(
                "the encoder was trained on several sets of 16 bits, each scaled by its own values, and the scaling of "
                "this image is not known: give it, as dataclasses.replace(transform, scaling=ShardSet(PATH).scaling)"
            )
        pixels = self._pixels(image) if self.scaling is None else self._levels(_values(image), self.scaling)
        view = centre_view(torch.from_numpy(pixels).permute(2, 0, 1), self.resize, self.image_size)
        std = torch.tensor(self.std)
        scale, shift = 1 / (255 * std), -torch.tensor(self.mean) / std
        # addcmul, as in the pipeline: rounded once
        return torch.addcmul(shift[:, None, None], view.float(), scale[:, None, None])

    def _levels(self, pixels: np.ndarray, scaling: Scaling) -> np.ndarray:
        """float32[H, W, C]."""
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        if pixels.dtype != np.uint16 or pixels.ndim not in (2, 3) or channels not in (1, 3) or not pixels.size:
            raise PipelineError(
                f"an image of the type {pixels.dtype} and the shape {list(pixels.shape)} is given, and the encoder was "
                "trained on 16 bits: give uint16 [H, W] or [H, W, 3], as imagecodecs reads it from a PNG or TIFF"
            )
        if channels > len(self.mean):
            raise PipelineError("an image of 16 bits has colours, and one channel is asked for: give uint16 [H, W]")
        return levels(pixels.reshape(*pixels.shape[:2], channels), scaling, len(self.mean))

    def _pixels(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """uint8[H, W, C]."""
        if isinstance(image, np.ndarray):
            raise PipelineError("an array is given, and images of 8 bits are those of Pillow: use Image.fromarray")
        found = upright(image)
        if len(self.mean) == 3:
            return np.array(found.convert("RGB"))
        pixels = np.array(found).reshape(found.height, found.width, -1)
        if not (pixels == pixels[..., :1]).all():
            raise PipelineError(
                f"an image of mode {image.mode} has colours, and one channel is asked for: convert it to grey with "
                "image.convert('L')"
            )
        return np.ascontiguousarray(pixels[..., :1])


def _values(image: Image.Image | np.ndarray) -> np.ndarray:
    """Those of an array; of an image of 16 bits upright."""
    is_deep = isinstance(image, Image.Image) and image.mode.startswith("I;16")
    return pixels_16(image) if is_deep else np.asarray(image)
