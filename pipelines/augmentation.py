"""The numbers of the papers' augmentations, defined once for all backends and for the flags; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipelines.errors import PipelineError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Means and standard deviations of ImageNet's red, green and blue, in [0, 1]."""
GREY_MEAN = (0.449,)
GREY_STD = (0.226,)
"""The same of one channel: the averages of ImageNet's three, so grey images keep about the range they have in three."""
BLUR_RADIUS_IN_SIGMAS = 3.0
"""A Gaussian window ends at the first whole pixel at or beyond this many standard deviations."""

_PROBABILITIES = ("flip", "vertical_flip", "turns", "jitter", "grey", "blur", "solarize")
_STRENGTHS = ("brightness", "contrast", "saturation")
_OF_BOTH = ("image_size", "mean", "std")
_LARGEST = 1e6  # of a strength, ratio or sigma: with far larger ones, products would be infinite


@dataclass(frozen=True)
class ViewSpec:
    """The augmentation of one view: random crop, blur, flips, turns, colour jitter, grey and solarization.

    Crop area, aspect ratio and flip follow MoCo (arXiv 1911.05722, section 3.3: "a 224x224-pixel crop is
    taken from a randomly resized image, and then undergoes random color jittering, random horizontal flip,
    and random grayscale conversion"). Blur and the weaker hue follow MoCo v2 (arXiv 2003.04297, section 3),
    which takes them from SimCLR (arXiv 2002.05709, appendix A). Solarization follows BYOL (arXiv 2006.07733,
    appendix B).

    Attributes:
        image_size: side of the square view, in pixels.
        area: smallest and largest share of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop, drawn log-uniformly.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        turns: probability of a turn by 90, 180 or 270 degrees, each as likely as the others.
        jitter: probability of the colour jitter.
        brightness: factors are uniform in [1 - brightness, 1 + brightness].
        contrast: likewise, about the view's mean grey.
        saturation: likewise.
        hue: shifts are uniform in [-hue, hue], in turns of the colour circle (0.5 is half a turn).
        grey: probability that the view becomes grey. The papers' code does that before the jitter in v1 and after it in
            v2; the result is the same (`pipelines.colour.colour_map`).
        blur: probability of the Gaussian blur.
        sigma: smallest and largest standard deviation of the blur, in pixels of the view.
        solarize: probability that levels of 128 and more are inverted, after all other colours.
        mean: means that are subtracted, in [0, 1]: of red, green and blue, by default ImageNet's; or one, and views
            have one channel, of sets of which all images are grey.
        std: standard deviations, in [0, 1], by which is divided; as many.
    """

    image_size: int = 224
    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    turns: float = 0.0
    jitter: float = 1.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    grey: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            self._require(0 <= getattr(self, name) <= 1, name, "is not a probability: use a number from 0 to 1")
        for name in _STRENGTHS:
            self._require(0 <= getattr(self, name) <= _LARGEST, name, "is no strength: use 0 or more, such as 0.4")
        self._require(0 <= self.hue <= 0.5, "hue", "is outside [0, 0.5] turns")
        self._require(0 < self.area[0] <= self.area[1] <= 1, "area", "must satisfy 0 < smallest <= largest <= 1")
        for name in ("ratio", "sigma"):
            low, high = getattr(self, name)
            self._require(0 < low <= high <= _LARGEST, name, "must satisfy 0 < smallest <= largest <= 1e6")
        self._require(
            len(self.mean) in (1, 3), "mean", "must have 3 values, of red, green and blue, or 1 for grey views"
        )
        self._require(len(self.std) == len(self.mean), "std", f"must have as many values as mean, {len(self.mean)}")
        self._require(all(0 <= value <= 1 for value in self.mean), "mean", "must be in [0, 1]: levels divided by 255")
        self._require(all(0 < value <= 1 for value in self.std), "std", "must be in (0, 1]: levels divided by 255")
        # the blur mirrors the view about its outermost pixels, once: its radius must be below the view's size
        smallest = 2 if self.blur == 0 else blur_radius(self.sigma[1]) + 1
        if self.image_size < smallest:
            raise PipelineError(
                f"image_size {self.image_size} is too small for this augmentation: use {smallest} or more"
            )

    def _require(self, condition: bool, name: str, what: str) -> None:
        if not condition:
            raise PipelineError(f"{name}={getattr(self, name)} {what}")

    @property
    def channels(self) -> int:
        """Channels of the views: 3, or 1."""
        return len(self.mean)

    @property
    def colours(self) -> bool:
        """Whether colours change at all: grey images need neither jitter nor grey, for example."""
        return self.jitter > 0 or self.grey > 0

    @property
    def reorients(self) -> bool:
        """Whether views are turned or flipped vertically."""
        return self.vertical_flip > 0 or self.turns > 0

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


@dataclass(frozen=True)
class ViewPair:
    """The augmentations of an image's two views.

    Attributes:
        query: of the first view.
        key: of the second view; side, mean and standard deviation are those of the query.
        name: where it comes from: v1, v2, v3 or a file; it makes no difference.
    """

    query: ViewSpec
    key: ViewSpec
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in _OF_BOTH:  # both views are the input of one network
            query, key = getattr(self.query, name), getattr(self.key, name)
            if query != key:
                raise PipelineError(f"{name} is {query} for the query and {key} for the key: use one for both")

    def __str__(self) -> str:
        return self.name or "views"

    def __iter__(self) -> Iterator[ViewSpec]:
        return iter((self.query, self.key))

    @property
    def image_size(self) -> int:
        """Side of both views in pixels."""
        return self.query.image_size

    @property
    def channels(self) -> int:
        """Channels of both views: 3, or 1."""
        return self.query.channels

    def changed(self, **values: float | tuple[float, ...]) -> ViewPair:
        """The pair with other numbers in both views."""
        return replace(self, query=replace(self.query, **values), key=replace(self.key, **values))

    @classmethod
    def of(cls, spec: ViewSpec | ViewPair) -> ViewPair:
        """A pair; of one augmentation, both views have it."""
        return spec if isinstance(spec, ViewPair) else cls(spec, spec)

    @classmethod
    def moco_v1(cls, image_size: int = 224) -> ViewPair:
        """Both views of MoCo v1."""
        return replace(cls.of(ViewSpec.moco_v1(image_size)), name="v1")

    @classmethod
    def moco_v2(cls, image_size: int = 224) -> ViewPair:
        """Both views of MoCo v2."""
        return replace(cls.of(ViewSpec.moco_v2(image_size)), name="v2")

    @classmethod
    def moco_v3(cls, image_size: int = 224) -> ViewPair:
        """The views of MoCo v3 (arXiv 2104.02057), as in its code, with the crops of its ResNet-50.

        They are BYOL's (arXiv 2006.07733, appendix B): the query is always blurred, the key seldom and solarized
        sometimes. Crops of the ViTs cover 8 % of the image or more: ``changed(area=(0.08, 1.0))``.
        """
        query = replace(ViewSpec.moco_v2(image_size), saturation=0.2, blur=1.0)
        return cls(query, replace(query, blur=0.1, solarize=0.2), "v3")


AUGMENTATIONS = {"v1": ViewPair.moco_v1, "v2": ViewPair.moco_v2, "v3": ViewPair.moco_v3}
"""The papers' views by the names of --augmentation; each takes the side of a view."""


def blur_radius(sigma: float) -> int:
    """Pixels on either side of the centre that a Gaussian window covers; its length is 2 * radius + 1."""
    # in float64: a float32 product may round down to a whole number and lose the outermost pixel
    return math.ceil(BLUR_RADIUS_IN_SIGMAS * float(sigma))
