"""The evaluation's view of one image, for images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD
from pipelines.centre import centre_view
from pipelines.errors import PipelineError
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
    """

    image_size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 0 < self.image_size <= self.resize:
            raise PipelineError(f"crop {self.image_size} does not fit a short side of {self.resize}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """float32 [C, S, S] of an image of any mode; an EXIF orientation is applied, as in packing.

        Raises:
            PipelineError: C is 1, and the image has colours.
        """
        pixels = torch.from_numpy(self._pixels(image)).permute(2, 0, 1)
        view = centre_view(pixels, self.resize, self.image_size)
        std = torch.tensor(self.std)
        scale, shift = 1 / (255 * std), -torch.tensor(self.mean) / std
        # addcmul, as in the pipeline: rounded once
        return torch.addcmul(shift[:, None, None], view.float(), scale[:, None, None])

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """uint8[H, W, C]."""
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
