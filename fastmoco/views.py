"""Which views a run makes: those of a paper (--augmentation, --crop-min), or of a file (--views); and evaluation's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fastmoco.flags import ConfigError, named, require, rising
from pipelines.augmentation import AUGMENTATIONS, ViewPair, ViewSpec
from pipelines.errors import PipelineError
from pipelines.views_file import of_tables, read

_SMALLEST = 16  # pixels; the five strides of a ResNet leave one


class _HasViews(Protocol):
    """The settings of a run's views, as of `fastmoco.settings.DataSettings`."""

    @property
    def image_size(self) -> int: ...
    @property
    def early_sizes(self) -> tuple[str, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def augmentation(self) -> str | None: ...
    @property
    def crop_min(self) -> float | None: ...
    @property
    def views(self) -> Path | ViewPair | None: ...


def alone(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were given together, with None for those of a recipe or a file that they replace.

    --views replaces --augmentation and --crop-min, and --augmentation replaces --views.
    """
    if given.get("views") is not None:
        return {"augmentation": None, "crop_min": None, **given}
    return {"views": None, **given} if given.get("augmentation") is not None else dict(given)


def resolved(views: Any, image_size: int) -> ViewPair | None:
    """The setting `views` as a pair: of a file's path, of the numbers that config.json has, or of a pair."""
    if isinstance(views, str | Path):
        return read(Path(views), image_size)
    return of_tables(views, "views", image_size=image_size) if isinstance(views, Mapping) else views


def early_sizes(settings: _HasViews) -> tuple[tuple[int, float], ...]:
    """Side in pixels of the views before those of `image_size`, each with the share of the run at which it ends.

    Raises:
        ConfigError: a value is not SIZE@SHARE, or sizes or shares do not rise.
    """
    found: list[tuple[int, float]] = []
    for value in settings.early_sizes:
        size, _, share = value.partition("@")
        try:
            found.append((int(size), float(share)))
        except ValueError:
            raise ConfigError(f"--early-sizes {value} is no size with a share of the run; write 32@0.5") from None
        require(
            _SMALLEST <= found[-1][0] < settings.image_size,
            f"--early-sizes {value}: the size must be at least {_SMALLEST}, and below --image-size "
            f"{settings.image_size}, which follows",
        )
        require(0 < found[-1][1] < 1, f"--early-sizes {value}: the share of the run must be above 0 and below 1")
    given = f"--early-sizes {' '.join(settings.early_sizes)}"
    for values in zip(*found, strict=True):
        rising(given, values)
    return tuple(found)


def pair_of(settings: _HasViews, image_size: int | None = None) -> ViewPair:
    """The augmentation of both views; raises ConfigError for views that the size is too small for.

    Args:
        settings: the run's settings.
        image_size: side of a view in pixels; None for that of the settings.
    """
    image_size = settings.image_size if image_size is None else image_size
    normalisation = {"mean": settings.mean, "std": settings.std}
    if not isinstance(settings.views, ViewPair):
        assert settings.augmentation is not None  # `check` refuses settings without either
        pair = AUGMENTATIONS[settings.augmentation](image_size).changed(**normalisation)
        return pair if settings.crop_min is None else pair.changed(area=(settings.crop_min, 1.0))
    try:
        return settings.views.changed(image_size=image_size, **normalisation)
    except PipelineError as error:
        raise ConfigError(f"--views {settings.views}: {error}; or a smaller sigma") from error


def check(settings: _HasViews) -> None:
    """Raise ConfigError for settings that exclude each other, or views that do not fit the size."""
    views, augmentation, crop_min = settings.views, settings.augmentation, settings.crop_min
    require(
        views is None or augmentation is None,
        f"--views {views} and --augmentation {augmentation} are both given; leave out one: the file may begin with "
        f'base = "{augmentation}"',
    )
    require(
        views is not None or augmentation is not None,
        "neither --augmentation nor --views is given; give one of them",
    )
    require(
        views is None or crop_min is None,
        f"--crop-min {crop_min} applies to --augmentation; write area = [{crop_min}, 1.0] into the file of --views",
    )
    if isinstance(views, ViewPair):
        _check_pair(views, settings)
    pair_of(settings)
    for size, share in early_sizes(settings):
        with named(f"--early-sizes {size}@{share:g}"):
            pair_of(settings, size)


def _check_pair(pair: ViewPair, settings: _HasViews) -> None:
    """Raise ConfigError for a side or normalisation of a pair from Python that the settings of the run do not have."""
    for name in ("image_size", "mean", "std"):
        given, own = getattr(pair.query, name), getattr(settings, name)
        require(
            given in (own, getattr(ViewSpec, name)),  # the default says nothing
            f"views has {name} {given}, and --{name.replace('_', '-')} is {own}: give {name}={given} beside it",
        )


def resize_for(image_size: int) -> int:
    """Short side before a centre crop of `image_size`: 8/7 of it (256 for 224), to the nearest multiple of 8."""
    return round(image_size * 8 / 7 / 8) * 8
