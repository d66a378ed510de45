"""Colours: jitter and grey composed to one affine map, and the one function that applies it, for every backend.

Conventions, with w the ITU-R 601 luma weights and m the view's mean colour at that moment:

* brightness b:  x -> b x
* contrast c:    x -> c x + (1 - c) w.m   (about the mean grey of the view, as torchvision and Pillow do)
* saturation s:  x -> s x + (1 - s) w.x
* hue h:         x -> T^-1 R(2 pi h) T x  (rotation of the IQ plane of YIQ; torchvision turns HSV's hue instead)
* grey:          x -> w.x

Values are clamped to [0, 255] once, at the end, not between the operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pipelines.draws import ColourFactors, ViewParams
    from pipelines.views import ViewSpec

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

# NTSC's RGB to YIQ, FCC 1953 as rounded in ITU-R BT.470; the first row is LUMA
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)
_GREY = np.tile(LUMA, (3, 1))
_COLOUR = np.eye(3) - _GREY
_QUARTER_TURN = _YIQ_INVERSE @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ _YIQ


def colour_map(factors: ColourFactors) -> tuple[np.ndarray, np.ndarray]:
    """Compose jitter and grey to one affine map of the colours.

    In YIQ every operation scales luma, turns or scales the IQ plane, or (contrast) adds to luma. So they commute:
    the map is the same in each of torchvision's random orders, and with grey before or after them.

    Returns:
        linear: float32[N, 3, 3] and mean_gain: float32[N, 3, 3], with
        ``out = linear @ rgb + mean_gain @ mean_rgb_of_the_view``.
    """
    luma = factors.brightness * factors.contrast
    colour = np.where(factors.grey, 0.0, luma * factors.saturation)
    # HSV's hue runs red, yellow, green, which is clockwise in the IQ plane: so is _QUARTER_TURN
    angle = 2 * np.pi * factors.hue
    # sums of products, not a matrix product: that one's last bits may depend on N
    parts = ((luma, _GREY), (colour * np.cos(angle), _COLOUR), (colour * np.sin(angle), _QUARTER_TURN))
    linear = sum(weight[:, None, None] * matrix for weight, matrix in parts)
    mean_gain = (factors.brightness - luma)[:, None, None] * _GREY
    return np.asarray(linear, dtype=np.float32), mean_gain.astype(np.float32)


def finish(views: torch.Tensor, params: ViewParams, spec: ViewSpec, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Colour map, clamp and normalisation in one affine map and one clamp, on the views' device.

    Args:
        views: uint8[B, H, W, 3] after crop, resize, blur and flip.
        params: the B images' parameters; only the colours are read.
        spec: gives mean and standard deviation.
        dtype: of the result; the arithmetic is float32 whatever it is.

    Returns:
        [B, 3, H, W] with channels-last strides, in new memory.
    """
    colours = Colours.of(params, spec, views)
    target = torch.empty(views.shape, dtype=torch.float32, device=views.device)
    return colours.apply(views, target).to(dtype).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Colours:
    """The colours of a batch, ready to be applied to all of it or to a part.

    Attributes:
        matrix: float32[B, 3 * n, 3 * n], the linear map on n neighbouring pixels, scaled to normalised values.
        gain: float32[B, 3, 3 * n], from the sum of a view's pixels to its share of the result.
        offset: float32[1, 1, 3 * n], normalised black.
        low: float32[3 * W], normalised black, repeated over a row.
        high: float32[3 * W], normalised white, repeated over a row.
    """

    matrix: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, params: ViewParams, spec: ViewSpec, views: torch.Tensor) -> Colours:
        """The colours of views (uint8[B, H, W, 3]) on their device."""
        _, height, width, _ = views.shape
        std = 255 * np.array(spec.std, dtype=np.float32)
        shift = -255 * np.array(spec.mean, dtype=np.float32) / std
        # four pixels at a time: products with 12 x 12 matrices, zeros included, run six times as fast on a CPU
        # as those with 3 x 3 matrices
        together = 4 if height * width % 4 == 0 else 1
        linear = (params.linear / std[:, None]).transpose(0, 2, 1)
        gain = (params.mean_gain / std[:, None] / np.float32(height * width)).transpose(0, 2, 1)
        arrays = (
            _block_diagonal(linear, together),
            np.tile(gain, together),
            np.tile(shift, together)[None, None],
            np.tile(shift, width),
            np.tile(255 / std + shift, width),
        )
        return cls(*(torch.from_numpy(array).to(views.device, non_blocking=True) for array in arrays))

    def apply(self, views: torch.Tensor, out: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        """Map the views of a part of the batch.

        Args:
            views: uint8[b, H, W, 3] with contiguous images.
            out: float32[b, H, W, 3], contiguous, written to and returned.
            part: which images of the batch they are.
        """
        batch, height, width, _ = views.shape
        rows, matrix = views.view(batch, height, width * 3), self.matrix[part]
        # whole numbers add up exactly, so the sum does not depend on how it is split among threads
        total = rows.sum(dim=1, dtype=torch.int32).view(batch, width, 3).sum(dim=1).to(torch.float32)
        target = out.view(batch, -1, matrix.shape[-1])
        pixels = rows.view(target.shape).to(torch.float32)
        offset = torch.baddbmm(self.offset, total[:, None], self.gain[part])
        torch.baddbmm(offset, pixels, matrix, out=target)
        torch.clamp(target.view(rows.shape), min=self.low, max=self.high, out=target.view(rows.shape))
        return out


def _block_diagonal(matrix: np.ndarray, count: int) -> np.ndarray:
    """float32[B, 3 * count, 3 * count] with float32[B, 3, 3] ``matrix`` along its diagonal."""
    blocks = np.eye(count, dtype=np.float32)[:, None, :, None] * matrix[:, None, :, None, :]
    return blocks.reshape(len(matrix), 3 * count, 3 * count)
