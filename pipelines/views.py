"""The parameters of the views of a batch, as drawn: what every backend is given."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from pipelines.augmentation import blur_radius

TWO_VIEWS = ("query", "key")
ONE_VIEW = ("query",)
CENTRE = ("centre",)
"""What a graph makes of each image: a query and a key, or a query alone, by `ViewParams`; or a centre crop, by
`pipelines.centre.CentreParams`."""


@dataclass(frozen=True)
class ViewParams:
    """The parameters of one view of each image of a batch, in the order in which they are applied.

    Attributes:
        box: int32[N, 4], the crop's top, left, height, width in pixels of the image.
        sigma: float32[N], standard deviation of the blur in pixels of the view; 0 means no blur.
        flip: bool[N], exchange left and right.
        vertical_flip: bool[N], exchange top and bottom.
        transpose: bool[N], exchange rows and columns. With the flips these are all turns and reflections of a square:
            a quarter turn to the left is a flip and a transposition.
        linear: float32[N, 3, 3], colour map in [0, 255] space:
            ``out = clamp(linear @ rgb + mean_gain @ mean_rgb_of_the_view, 0, 255)``.
        mean_gain: float32[N, 3, 3], see ``linear``.
        solarize: bool[N], ``out = min(out, 255 - out)`` after that: as Pillow's `ImageOps.solarize` on whole levels,
            which inverts those of 128 and more, and without a jump between 127 and 128, where backends could differ.
    """

    box: np.ndarray
    sigma: np.ndarray
    flip: np.ndarray
    vertical_flip: np.ndarray
    transpose: np.ndarray
    linear: np.ndarray
    mean_gain: np.ndarray
    solarize: np.ndarray

    def __len__(self) -> int:
        return len(self.box)

    def take(self, slots: slice | np.ndarray) -> ViewParams:
        """The parameters of some images of the batch."""
        return ViewParams(**{field.name: getattr(self, field.name)[slots] for field in fields(self)})

    def replaced(self, slots: np.ndarray, others: ViewParams) -> ViewParams:
        """A copy in which the images at ``slots`` (int[M]) have the parameters ``others`` (of M images)."""
        changed = {}
        for field in fields(self):
            values = getattr(self, field.name).copy()
            values[slots] = getattr(others, field.name)
            changed[field.name] = values
        return ViewParams(**changed)


@dataclass(frozen=True)
class ColourFactors:
    """The colour jitter and grey of N views, as drawn.

    torchvision also draws the order of the four operations. They commute in `colour_map`, so it would change nothing.

    Attributes:
        brightness: float64[N]; 1 changes nothing.
        contrast: float64[N]; 1 changes nothing.
        saturation: float64[N]; 1 changes nothing.
        hue: float64[N], in turns; 0 changes nothing.
        grey: bool[N].
    """

    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    grey: np.ndarray


NONE = np.ones(1, dtype=np.float32)
"""The window of no blur."""


def gaussian(sigma: float) -> np.ndarray:
    """float32[2 * radius + 1]: samples of the Gaussian at whole pixels, normalised to sum 1."""
    radius = blur_radius(sigma)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * float(sigma) ** 2))
    return (weights / weights.sum()).astype(np.float32)
