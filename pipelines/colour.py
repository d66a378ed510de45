"""Colours: jitter and grey composed to one affine map, and the functions that apply it, for every backend.

Conventions, with w the ITU-R 601 luma weights and m the view's mean colour at that moment:

* brightness b:  x -> b x
* contrast c:    x -> c x + (1 - c) w.m   (about the mean grey of the view, as torchvision and Pillow do)
* saturation s:  x -> s x + (1 - s) w.x
* hue h:         x -> T^-1 R(2 pi h) T x  (rotation of the IQ plane of YIQ; torchvision turns HSV's hue instead)
* grey:          x -> w.x

Values are clamped to [0, 255] once, after these, and not between the operations; then some views are solarized.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipelines.augmentation import ViewSpec
from pipelines.kernels import views as _kernels
from pipelines.views import ColourFactors, ViewParams

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in a grey level (ITU-R BT.601)."""

# NTSC's RGB to YIQ, FCC 1953 as rounded in ITU-R BT.470; the first row is LUMA
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)
_GREY = np.tile(LUMA, (3, 1))
_COLOUR = np.eye(3) - _GREY
_QUARTER_TURN = _YIQ_INVERSE @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ _YIQ


def colour_map(factors: ColourFactors) -> tuple[np.ndarray, np.ndarray]:
    """Compose jitter and grey to one affine map of the colours.

    In YIQ every operation scales luma, rotates or scales the IQ plane, or (contrast) adds to luma. So they commute: the
    map is the same for each of torchvision's random orders, and with grey before or after the jitter.

    Returns:
        linear: float32[N, 3, 3] and mean_gain: float32[N, 3, 3], with
        ``out = linear @ rgb + mean_gain @ mean_rgb_of_the_view``.
    """
    # composed in float64 and rounded once, so that every backend starts from the same float32 numbers
    luma = factors.brightness * factors.contrast
    colour = np.where(factors.grey, 0.0, luma * factors.saturation)
    # HSV's hue goes from red to yellow to green, which is clockwise in the IQ plane; so is _QUARTER_TURN
    angle = 2 * np.pi * factors.hue
    # sums of products and not a matrix product, whose last bits may depend on N
    parts = ((luma, _GREY), (colour * np.cos(angle), _COLOUR), (colour * np.sin(angle), _QUARTER_TURN))
    linear = sum(weight[:, None, None] * matrix for weight, matrix in parts)
    mean_gain = (factors.brightness - luma)[:, None, None] * _GREY
    return np.asarray(linear, dtype=np.float32), mean_gain.astype(np.float32)


def finish(views: torch.Tensor, params: ViewParams, spec: ViewSpec, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Colour map, clamp, solarization and normalisation, on the views' device: one affine map does the first and last.

    Args:
        views: uint8[B, H, W, C] after crop, resize, blur, flips and turns.
        params: the B images' parameters, of which only the colours are used.
        spec: mean and standard deviation.
        dtype: of the result; the arithmetic is float32 in any case.

    Returns:
        [B, C, H, W] with channels-last strides, in new memory.
    """
    colours = Colours.of(params, spec, views.shape[1] * views.shape[2])
    if views.device.type != "cpu":
        return colours.on_device(views).to(dtype).permute(0, 3, 1, 2)
    out = torch.empty(views.shape, dtype=torch.float32)
    for slot in range(len(views)):
        colours.paint(slot, views[slot], out[slot])
    return out.to(dtype).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Colours:
    """The colour maps of a batch, from levels to normalised values: one multiplication does both.

    Of one channel: jitter and grey keep the three channels of a grey pixel equal, so one of them says all.

    Attributes:
        linear: float32[B, C, C], applied to a pixel's levels.
        gain: float32[B, C, C], applied to the sum of a view's levels.
        low: float32[C], normalised black, which is also the map's offset.
        high: float32[C], normalised white.
        solarize: bool[B], values above the middle of black and white are mirrored about it.
    """

    linear: np.ndarray
    gain: np.ndarray
    low: np.ndarray
    high: np.ndarray
    solarize: np.ndarray

    @classmethod
    def of(cls, params: ViewParams, spec: ViewSpec, pixels: int) -> Colours:
        """The colour maps of views of ``pixels`` pixels."""
        std = 255 * np.array(spec.std, dtype=np.float32)
        low = -255 * np.array(spec.mean, dtype=np.float32) / std
        linear, mean_gain = params.linear, params.mean_gain
        if spec.channels == 1:  # what red becomes where red, green and blue are equal
            linear, mean_gain = (each[:, :1].sum(axis=2, keepdims=True) for each in (linear, mean_gain))
        linear = linear / std[:, None]
        gain = mean_gain / std[:, None] / np.float32(pixels)
        return cls(np.ascontiguousarray(linear), np.ascontiguousarray(gain), low, 255 / std + low, params.solarize)

    def paint(self, slot: int, view: torch.Tensor, out: torch.Tensor) -> None:
        """Map one view in host memory.

        Args:
            slot: the image's place in the batch.
            view: uint8[H, W, C], contiguous.
            out: float32[H, W, C], contiguous, written to.
        """
        levels, values = view.numpy().reshape(-1), out.numpy().reshape(-1)
        colours = self.linear[slot], self.gain[slot], self.low, self.high, bool(self.solarize[slot])
        _kernels.paint(levels, *colours, values)

    def on_device(self, views: torch.Tensor) -> torch.Tensor:
        """float32[B, H, W, C] of uint8[B, H, W, C], by torch's operations on the views' device."""
        batch, height, width, channels = views.shape
        linear, gain, low, high = (
            torch.from_numpy(array).to(views.device, non_blocking=True)
            for array in (self.linear.transpose(0, 2, 1), self.gain.transpose(0, 2, 1), self.low, self.high)
        )
        pixels = views.view(batch, height * width, channels)
        # a sum of whole numbers is exact in any order, so a GPU gets the same mean as a CPU; 2,902 pixels squared of
        # white are too many for int32
        total = pixels.sum(dim=1, dtype=torch.int64).to(torch.float32)
        offset = torch.baddbmm(low[None, None], total[:, None], gain)
        values = torch.baddbmm(offset, pixels.to(torch.float32), linear)
        values = torch.clamp(values, min=low, max=high)
        if self.solarize.any():
            solarize = torch.from_numpy(self.solarize).to(views.device, non_blocking=True)
            values = torch.where(solarize[:, None, None], torch.minimum(values, low + high - values), values)
        return values.view(views.shape)
