"""Peak memory of packing one image, in bytes a pixel, by its format.

    python benchmarks/memory.py [--side 6000] [--json OUT]

Each image is encoded in a process of its own, once as it is and once with --resize; its peak is the kernel's VmHWM over
what the process held with the file's bytes read, so this runs on Linux alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.images.encode import encode
from shards.images.options import EncodeOptions

RESIZE = 256


def main() -> None:
    """Measure, print a line for each format, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6000, metavar="N", help="pixels")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows and the environment to this file")
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resize", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.image:
        print(_peak_of(args.image, EncodeOptions(resize=args.resize)))
        return
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        rows = [_row(path, args.side) for path in _images(Path(folder), args.side)]
    if args.json:
        from _environment import environment  # imports torch, which the measured processes must not

        text = json.dumps({"environment": environment(), "side": args.side, "rows": rows}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")


def _images(folder: Path, side: int) -> list[Path]:
    """One image of each format, in files."""
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


def _row(path: Path, side: int) -> dict[str, Any]:
    row: dict[str, Any] = {"format": path.stem}
    for name, options in (("bytes_per_pixel", []), ("bytes_per_pixel_resized", ["--resize", str(RESIZE)])):
        line = [sys.executable, __file__, "--image", str(path), *options]
        peak = int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
        row[name] = round(peak / side**2, 1)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def _peak_of(path: Path, options: EncodeOptions) -> int:
    data = path.read_bytes()
    before = _high_water()
    encode(data, options)
    return _high_water() - before


def _high_water() -> int:
    """Most bytes that this process has held in memory so far."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise SystemExit("/proc/self/status has no VmHWM: this benchmark runs on Linux alone")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
