"""Peak memory of packing one image, in bytes per pixel, by its format.

    python benchmarks/memory.py [--side 6000] [--json OUT]

Each image is encoded in a separate process, once unchanged and once with --resize. Its peak is the kernel's VmHWM above
that of the process with the file's bytes read (Linux only).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from _command import script
from _memory import memory
from _processes import in_process
from _results import show, write_json
from fastmoco.flags import at_least
from shards.images.encode import encode
from shards.images.options import EncodeOptions

RESIZE = 256


@dataclass(frozen=True)
class Args:
    """Measure the peak memory of packing one image of each format."""

    side: int = 6000
    """Side of the images in pixels."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Measure, print a line for each format, and write the rows."""
    at_least(1, args, "side")
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        rows = []
        for path in _images(Path(folder), args.side):
            row: dict[str, Any] = {"format": path.stem}
            for name, resize in (("bytes_per_pixel", None), ("bytes_per_pixel_resized", RESIZE)):
                peak = in_process("memory", "peak", {"path": str(path), "resize": resize})
                row[name] = round(peak / args.side**2, 1)
            rows.append(show(row))
    if args.json:
        from _environment import environment  # imports torch, which the measured processes must not

        write_json(args.json, {"environment": environment(), "side": args.side, "rows": rows})


def _images(folder: Path, side: int) -> list[Path]:
    """Files with one image of each format."""
    # a file for each path through decoding and conversion, which differ in their intermediate images
    y, x = np.mgrid[:side, :side].astype(np.int64)
    colours = np.stack((x * 255 // side, y * 255 // side, (x + y) % 256), axis=-1).astype(np.uint8)
    image = Image.fromarray(colours)
    image.save(folder / "JPEG.jpg", quality=90)
    image.save(folder / "progressive JPEG.jpg", quality=90, progressive=True)
    image.convert("CMYK").save(folder / "CMYK JPEG.jpg")
    Image.fromarray(np.dstack((colours, (x % 256).astype(np.uint8)))).save(folder / "PNG with alpha.png")
    Image.fromarray((x * 65535 // side).astype(np.uint16)).save(folder / "16-bit PNG.png")
    image.convert("P").save(folder / "palette PNG.png", transparency=3)
    image.convert("P").save(folder / "GIF.gif")
    image.save(folder / "TIFF.tif")
    Image.fromarray((x / side).astype(np.float32)).save(folder / "float TIFF.tif")
    image.save(folder / "WebP.webp", method=0)
    return sorted(folder.iterdir())


def peak(path: str, resize: int | None) -> int:
    """Bytes by which encoding an image raises the peak memory of this process."""
    data = Path(path).read_bytes()
    before = memory("VmHWM")
    encode(data, EncodeOptions(resize=resize))
    return memory("VmHWM") - before


if __name__ == "__main__":
    script(Args, run)
