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
_CONTRAST = 1


def colour_map(factors: ColourFactors, *, grey_first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Compose jitter and grey to one affine map of the colours.

    Returns:
        linear: float32[N, 3, 3] and mean_gain: float32[N, 3, 3], with
        ``out = linear @ rgb + mean_gain @ mean_rgb_of_the_view``.
    """
    count = len(factors.grey)
    grey = np.where(factors.grey[:, None, None], _GREY, np.eye(3))
    linear = grey if grey_first else np.broadcast_to(np.eye(3), (count, 3, 3))
    mean_gain = np.zeros((count, 3, 3))
    operations = _operations(factors)
    rows = np.arange(count)
    for position in range(4):
        which = factors.order[:, position]
        matrix = operations[rows, which]
        to_mean = np.where(which == _CONTRAST, 1 - factors.contrast, 0.0)[:, None, None]
        mean_gain = matrix @ mean_gain + to_mean * (_GREY @ (linear + mean_gain))
        linear = matrix @ linear
    if not grey_first:
        linear, mean_gain = grey @ linear, grey @ mean_gain
    return linear.astype(np.float32), mean_gain.astype(np.float32)


def _operations(factors: ColourFactors) -> np.ndarray:
    """float64[N, 4, 3, 3]: the linear parts of brightness, contrast, saturation and hue."""
    eye = np.eye(3)
    saturation = factors.saturation[:, None, None]
    # HSV's hue runs red, yellow, green, which is clockwise in the IQ plane: hence the sign
    angle = -2 * np.pi * factors.hue
    rotation = np.zeros((len(angle), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.stack(
        (
            factors.brightness[:, None, None] * eye,
            factors.contrast[:, None, None] * eye,
            saturation * eye + (1 - saturation) * _GREY,
            _YIQ_INVERSE @ rotation @ _YIQ,
        ),
        axis=1,
    )


def finish(
    views: torch.Tensor,
    params: ViewParams,
    spec: ViewSpec,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Colour map, clamp and normalisation in one affine map and one clamp, on the views' device.

    Args:
        views: uint8[B, H, W, 3] after crop, resize, blur and flip.
        params: the B images' parameters; only the colours are read.
        spec: gives mean and standard deviation.
        dtype: of the result; the arithmetic is float32 whatever it is.
        out: float32[B, H, W, 3], contiguous, written to when given.

    Returns:
        [B, 3, H, W] with channels-last strides, new memory unless ``out`` is given.
    """
    colours = torch.from_numpy(np.stack((params.linear, params.mean_gain), axis=1))
    return apply_colours(views, colours.to(views.device, non_blocking=True), spec, dtype, out)


def apply_colours(
    views: torch.Tensor,
    colours: torch.Tensor,
    spec: ViewSpec,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`finish` with the colour maps as one float32[B, 2, 3, 3] tensor (linear, mean_gain) on the views' device."""
    batch, height, width, _ = views.shape
    rows = views.reshape(batch, height, width * 3)
    scale = 1 / (255 * torch.tensor(spec.std, device=views.device))
    shift = -torch.tensor(spec.mean, device=views.device) / torch.tensor(spec.std, device=views.device)
    # whole numbers add up exactly, so the mean does not depend on how the sum is split among threads
    mean = rows.sum(dim=1, dtype=torch.int32).view(batch, width, 3).sum(dim=1) / (height * width)
    offset = torch.einsum("bij,bj->bi", colours[:, 1], mean) * scale + shift
    matrix = (colours[:, 0] * scale[:, None]).transpose(1, 2)
    together = 4 if height * width % 4 == 0 else 1
    pixels = rows.view(batch, height * width // together, 3 * together).to(torch.float32)
    target = torch.empty_like(pixels) if out is None else out.view(pixels.shape)
    torch.baddbmm(offset.repeat(1, together)[:, None], pixels, _block_diagonal(matrix, together), out=target)
    target = target.view(rows.shape)
    torch.clamp(target, min=shift.repeat(width), max=(255 * scale + shift).repeat(width), out=target)
    return target.to(dtype).view(batch, height, width, 3).permute(0, 3, 1, 2)


def _block_diagonal(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """[B, 3 * count, 3 * count] with [B, 3, 3] ``matrix`` along its diagonal.

    A product with 12 x 12 matrices maps four neighbouring pixels at once and runs six times as fast on a CPU
    as one with 3 x 3 matrices, zeros included: the kernels are made for longer rows.
    """
    if count == 1:
        return matrix
    eye = torch.eye(count, device=matrix.device)
    blocks = eye[None, :, None, :, None] * matrix[:, None, :, None, :]
    return blocks.reshape(len(matrix), 3 * count, 3 * count)
