"""The parameters of the MoCo papers' augmentation, defined once for all backends."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from pipelines.errors import PipelineError

TWO_VIEWS = ("query", "key")
ONE_VIEW = ("query",)
CENTRE = ("centre",)
"""What a graph makes of each image: a query and a key, or a query alone, by `ViewParams`; or a centre crop, by
`pipelines.centre.CentreParams`."""
BLUR_RADIUS_IN_SIGMAS = 3.0
"""A Gaussian window ends at the first whole pixel at or beyond this many standard deviations."""


@dataclass(frozen=True)
class ViewSpec:
    """Random crop, colour jitter, grey, blur and flip of one view.

    Crop area, aspect ratio and flip follow MoCo (arXiv 1911.05722, section 3.3: "a 224x224-pixel crop is
    taken from a randomly resized image, and then undergoes random color jittering, random horizontal flip,
    and random grayscale conversion"). Blur and the weaker hue follow MoCo v2 (arXiv 2003.04297, section 3),
    which takes them from SimCLR (arXiv 2002.05709, appendix A).

    Attributes:
        image_size: side of the square view, in pixels.
        area: smallest and largest share of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop, drawn log-uniformly.
        attempts: crops drawn before falling back to the centre crop.
        flip: probability of a horizontal flip.
        jitter: probability of the colour jitter.
        brightness: factors are uniform in [1 - brightness, 1 + brightness].
        contrast: likewise, about the view's mean grey.
        saturation: likewise.
        hue: shifts are uniform in [-hue, hue], in turns of the colour circle (0.5 is half a turn).
        grey: probability that the view becomes grey. The papers' code does that before the jitter in v1 and after it in
            v2; the result is the same (`pipelines.colour.colour_map`).
        blur: probability of the Gaussian blur.
        sigma: smallest and largest standard deviation of the blur, in pixels of the view.
        mean: ImageNet's channel means, in [0, 1].
        std: ImageNet's channel standard deviations, in [0, 1].
    """

    image_size: int = 224
    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    attempts: int = 10
    flip: float = 0.5
    jitter: float = 1.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    grey: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        # the blur mirrors the view about its outermost pixels, once: its radius must be below the view's size
        smallest = 2 if self.blur == 0 else blur_radius(self.sigma[1]) + 1
        if self.image_size < smallest:
            raise PipelineError(
                f"image_size {self.image_size} is too small for this augmentation: use {smallest} or more"
            )
        for name in ("flip", "jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise PipelineError(f"{name}={getattr(self, name)} is not a probability: use a number from 0 to 1")
        if not 0 <= self.hue <= 0.5:
            raise PipelineError(f"hue={self.hue} is outside [0, 0.5] turns")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise PipelineError(f"area={self.area} must satisfy 0 < smallest <= largest <= 1")

    @classmethod
    def moco_v1(cls, image_size: int = 224) -> ViewSpec:
        """The augmentation of MoCo v1 (arXiv 1911.05722, section 3.3)."""
        return cls(image_size=image_size)

    @classmethod
    def moco_v2(cls, image_size: int = 224) -> ViewSpec:
        """The augmentation of MoCo v2 (arXiv 2003.04297, section 3): v1 with blur, less hue, jitter at 0.8."""
        return replace(cls.moco_v1(image_size), jitter=0.8, hue=0.1, blur=0.5)

    @classmethod
    def probe(cls, image_size: int = 224) -> ViewSpec:
        """The augmentation of a linear probe's training (arXiv 1911.05722, section 4.1): random resized crop and flip.

        The crop covers 8 % or more of the image, as in GoogLeNet's training (arXiv 1409.4842, section 6) and by
        default in torchvision.
        """
        return cls(image_size=image_size, area=(0.08, 1.0), jitter=0.0, grey=0.0)


def blur_radius(sigma: float) -> int:
    """Pixels on either side of the centre that a Gaussian window covers; its length is 2 * radius + 1."""
    # in float64: a float32 product may round down to a whole number and lose the outermost pixel
    return math.ceil(BLUR_RADIUS_IN_SIGMAS * float(sigma))


@dataclass(frozen=True)
class ViewParams:
    """The parameters of one view of each image of a batch, in the order in which they are applied.

    Attributes:
        box: int32[N, 4], the crop's top, left, height, width in pixels of the image.
        sigma: float32[N], standard deviation of the blur in pixels of the view; 0 means no blur.
        flip: bool[N], exchange left and right.
        linear: float32[N, 3, 3], colour map in [0, 255] space:
            ``out = clamp(linear @ rgb + mean_gain @ mean_rgb_of_the_view, 0, 255)``.
        mean_gain: float32[N, 3, 3], see ``linear``.
    """

    box: np.ndarray
    sigma: np.ndarray
    flip: np.ndarray
    linear: np.ndarray
    mean_gain: np.ndarray

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
