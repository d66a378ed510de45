"""Images that one core packs in a second, by their format, with and without `--srgb`.

    python benchmarks/formats.py [--width 1600 --height 1200] [--seconds 1] [--repeats 3] [--json OUT]

The picture is made, and the same in all formats. HEIC, JPEG XL and AVIF need the extra `formats`. All rows are measured
in turn, and the median of the repeats counts.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageCms, features

from _command import BenchmarkError, script
from _results import show, write_json
from fastmoco.flags import at_least, positive
from shards.images.encode import encode
from shards.images.options import EncodeOptions


@dataclass(frozen=True)
class Args:
    """Images that one core packs in a second, by their format."""

    width: int = 1600
    """Width of the images in pixels."""
    height: int = 1200
    """Height of the images in pixels."""
    seconds: float = 1.0
    """Time for each row and repeat."""
    repeats: int = 3
    """Repeats of all rows."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print a line for each format, and write the rows."""
    at_least(1, args, "repeats")
    at_least(16, args, "width", "height")
    positive(args, "seconds")
    files = dict(_files(args.width, args.height))
    rates: dict[tuple[str, bool], list[float]] = {(name, srgb): [] for name in files for srgb in (False, True)}
    for _ in range(args.repeats):
        for (name, srgb), found in rates.items():
            found.append(_rate(files[name], EncodeOptions(srgb=srgb), args.seconds))
    rows = [
        show({"format": name, "srgb": srgb, "imgs_per_sec": round(median(found), 1)})
        for (name, srgb), found in rates.items()
    ]
    if args.json:
        from _environment import environment

        size = {"width": args.width, "height": args.height, "repeats": args.repeats}
        write_json(args.json, {"environment": environment(), **size, "rows": rows})


def _files(width: int, height: int) -> Iterator[tuple[str, bytes]]:
    try:
        import pillow_heif
        import pillow_jxl  # noqa: F401 (Pillow then writes JPEG XL)
    except ImportError as error:
        raise BenchmarkError(f"{error.name} is missing: pip install 'fastmoco[formats]'") from None
    if not features.check("avif"):
        raise BenchmarkError("this Pillow has no AVIF: pip install 'fastmoco[formats]'")
    y, x = np.mgrid[:height, :width]
    waves = 96 * np.sin(x / 37 + y / 53) + 24 * np.random.default_rng(0).standard_normal((height, width))
    planes = np.stack([x * 255 / width + waves, y * 255 / height + waves, 128 + waves], axis=-1)
    image = Image.fromarray(planes.clip(0, 255).astype(np.uint8))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # of another display: the primaries of red and green change places
    other = srgb.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    profiles = {"no profile": None, "an sRGB profile": srgb, "another profile": other}
    for words, profile in profiles.items():
        yield f"JPEG with {words}", _saved(image, "JPEG", quality=90, icc_profile=profile)
    yield "PNG with another profile", _saved(image, "PNG", icc_profile=other)
    yield "CMYK JPEG", _saved(image.convert("CMYK"), "JPEG", quality=90)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=80)
    yield "HEIC", buffer.getvalue()
    yield "AVIF", _saved(image, "AVIF", quality=80, speed=9)
    yield "JPEG XL", _saved(image, "JXL", quality=90, effort=3)
    path = io.BytesIO(_saved(image, "JPEG", quality=90))
    with Image.open(path) as jpeg:
        yield "JPEG XL of a JPEG", _saved(jpeg, "JXL", lossless_jpeg=True, effort=3)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _rate(data: bytes, options: EncodeOptions, seconds: float) -> float:
    encode(data, options)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        encode(data, options)
        count += 1
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    script(Args, run)
