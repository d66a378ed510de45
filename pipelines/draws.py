"""The random parameters of a view: a pure function of (seed, epoch, id, view), passed to the backend as numbers.

A draw does not depend on the batch, the rank or the thread in which it is made, so DALI and torch make the same
views, and a restarted run repeats them.
"""

from __future__ import annotations

import numpy as np

from pipelines._random import uniforms
from pipelines.augmentation import ViewSpec
from pipelines.colour import colour_map
from pipelines.views import ColourFactors, ViewParams

_ATTEMPTS = 10
"""Crops that are drawn before the centre crop is taken, as in torchvision."""
_LATER = 2
"""Added to the number of a view: the stream of what v1 and v2 do not have, so that their numbers stay as they are."""


def draw(spec: ViewSpec, *, seed: int, epoch: int, ids: np.ndarray, sizes: np.ndarray, view: int) -> ViewParams:
    """Draw the parameters of one view of each image.

    Args:
        spec: the augmentation.
        seed: the run's seed.
        epoch: 0 or more.
        ids: int64[N] sample ids.
        sizes: int32[N, 2], height and width of the images.
        view: 0 for the query, 1 for the key.
    """
    # columns have fixed meanings: a change of their order or number changes the views of every seed
    numbers = uniforms(ids, seed=seed, epoch=epoch, stream=view, count=11 + 2 + 2 * _ATTEMPTS)
    colour, flip, blur, sigma, boxes = np.split(numbers, (8, 9, 10, 11), axis=1)
    later = np.ones((len(numbers), 4))  # no event, whatever its probability below 1
    if spec.solarize or spec.vertical_flip or spec.turns:
        later = uniforms(ids, seed=seed, epoch=epoch, stream=_LATER + view, count=4)
    linear, mean_gain = colour_map(draw_colour(spec, colour))
    # drawn for all images, blurred or not, so that a change of the probability leaves the other draws as they are
    sigma = spec.sigma[0] + (spec.sigma[1] - spec.sigma[0]) * sigma[:, 0]
    flip, vertical_flip, transpose = _oriented(spec, flip[:, 0] < spec.flip, later[:, 1:])
    return ViewParams(
        box=draw_boxes(spec, boxes, sizes),
        sigma=np.where(blur[:, 0] < spec.blur, sigma, 0.0).astype(np.float32),
        flip=flip,
        vertical_flip=vertical_flip,
        transpose=transpose,
        linear=linear,
        mean_gain=mean_gain,
        solarize=later[:, 0] < spec.solarize,
    )


def _oriented(spec: ViewSpec, flip: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both flips and then a turn, as the flips and the transposition of `ViewParams`.

    Args:
        spec: the augmentation.
        flip: bool[N].
        numbers: float64[N, 3] in (0, 1): for the vertical flip, whether to turn, and how far.
    """
    vertical = numbers[:, 0] < spec.vertical_flip
    if not spec.turns:
        return flip, vertical, np.zeros_like(flip)
    # quarter turns to the left, as of numpy.rot90
    quarters = np.where(numbers[:, 1] < spec.turns, 1 + (3 * numbers[:, 2]).astype(np.int64), 0)
    half = quarters == 2
    return flip ^ (quarters == 1) ^ half, vertical ^ (quarters == 3) ^ half, quarters % 2 == 1


def draw_colour(spec: ViewSpec, numbers: np.ndarray) -> ColourFactors:
    """Colour jitter and grey from uniform numbers, with the semantics of torchvision's ColorJitter and RandomGrayscale.

    Args:
        spec: the augmentation.
        numbers: float64[N, 8] in (0, 1). The sixth and the seventh are unused.
    """
    jittered = numbers[:, 0] < spec.jitter

    def factor(column: int, width: float, neutral: float) -> np.ndarray:
        low = max(neutral - width, 0.0) if neutral else -width
        return np.where(jittered, low + (neutral + width - low) * numbers[:, column], neutral)

    return ColourFactors(
        brightness=factor(1, spec.brightness, 1.0),
        contrast=factor(2, spec.contrast, 1.0),
        saturation=factor(3, spec.saturation, 1.0),
        hue=factor(4, spec.hue, 0.0),
        grey=numbers[:, 7] < spec.grey,
    )


def draw_boxes(spec: ViewSpec, numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Crop boxes with the semantics of torchvision's RandomResizedCrop.

    The area is uniform, the aspect ratio log-uniform. The first of ten shapes that fits is placed uniformly. If none
    fits, the crop is the largest centred box whose ratio is within bounds.

    Args:
        spec: the augmentation.
        numbers: float64[N, 22] in (0, 1).
        sizes: int32[N, 2], height and width of the images.

    Returns:
        int32[N, 4]: top, left, height, width.
    """
    size_h, size_w = (np.asarray(sizes)[:, axis].astype(np.float64)[:, None] for axis in (0, 1))
    # all attempts of all images at once; a loop over attempts would have to select the images that need another
    place, shape = numbers[:, :2], numbers[:, 2:].reshape(len(numbers), _ATTEMPTS, 2)
    area = size_h * size_w * (spec.area[0] + (spec.area[1] - spec.area[0]) * shape[..., 0])
    low, high = np.log(spec.ratio)
    ratio = np.exp(low + (high - low) * shape[..., 1])
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width > 0) & (width <= size_w) & (height > 0) & (height <= size_h)
    first, found = fits.argmax(axis=1)[:, None], fits.any(axis=1)
    size_h, size_w = size_h[:, 0], size_w[:, 0]
    centre_h, centre_w = _centre_shape(spec, size_h, size_w)
    height = np.where(found, np.take_along_axis(height, first, 1)[:, 0], centre_h)
    width = np.where(found, np.take_along_axis(width, first, 1)[:, 0], centre_w)
    room_h, room_w = size_h - height, size_w - width
    top = np.where(found, np.floor(place[:, 0] * (room_h + 1)), room_h // 2)
    left = np.where(found, np.floor(place[:, 1] * (room_w + 1)), room_w // 2)
    return np.stack((top, left, height, width), axis=1).astype(np.int32)


def _centre_shape(spec: ViewSpec, size_h: np.ndarray, size_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and width of the fallback: the whole image, its longer side cut to a ratio within bounds."""
    ratio = size_w / size_h
    height = np.where(ratio < spec.ratio[0], np.rint(size_w / spec.ratio[0]), size_h)
    width = np.where(ratio > spec.ratio[1], np.rint(size_h * spec.ratio[1]), size_w)
    # one pixel at least, which torchvision does not heed: bounds far from 1 would leave none of a small image
    return np.clip(height, 1, size_h), np.clip(width, 1, size_w)
