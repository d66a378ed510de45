"""Damaged images through the packer's decoder path: no crash, no hang, a cause for every image that is left out.

    python tests/shards/fuzz.py --count 20000 --seed 0

Input N depends on the seed and N alone. The inputs are tried in a separate process. If it dies, or an input takes
more than five seconds of processor time, that input is named, the process replaced, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import multiprocessing
import os
import re
import signal
import struct
import sys
import warnings
import zlib
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image

from shards.images.encode import Rejected, encode
from shards.images.jpeg import END, read_header
from shards.images.options import EncodeOptions

LIMIT = 5.0  # seconds of processor time for one input
CAUSE = re.compile(r"(empty|truncated|damaged|too small|too large|not an image|unsupported): \S.*")
OPTIONS = (EncodeOptions(), EncodeOptions(check=False), EncodeOptions(resize=16), EncodeOptions(max_pixels=4000))
VARIANTS = (
    ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
    ("PNG", "RGB", {}), ("PNG", "P", {"transparency": 3}), ("PNG", "LA", {}), ("PNG", "I;16", {}),
    ("PNG", "RGBA", {"save_all": True, "append_images": [Image.new("RGBA", (64, 48))]}),
    ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]}),
)  # fmt: skip


@functools.cache
def original(variant: int) -> bytes:
    """An image file of 64 x 48 pixels."""
    kind, mode, options = VARIANTS[variant]
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1) + np.random.default_rng(0).integers(0, 24, (48, 64, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 7) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged(seed: int, number: int) -> bytes:
    """Input `number`: an original with one to six faults, in its header or anywhere."""
    rng = np.random.default_rng((seed, number))
    kind = int(rng.integers(len(VARIANTS)))
    data = bytearray(original(kind))
    for _ in range(int(rng.integers(1, 7))):
        _damage(data, rng, reach=len(data) if rng.random() < 0.5 else min(len(data), 200))
    if VARIANTS[kind][0] == "PNG" and rng.random() < 0.7:  # otherwise the checksum would catch most faults
        data = bytearray(_with_checksums(bytes(data)))
    return bytes(data)


def _damage(data: bytearray, rng: np.random.Generator, reach: int) -> None:
    """Add one fault before byte `reach`: changed bits, bytes or lengths; bytes lost, doubled or inserted; a cut."""
    place = int(rng.integers(max(1, min(reach, len(data)))))
    length = int(rng.integers(1, 40))
    fault = int(rng.integers(8))
    if fault == 0 and data:
        data[place % len(data)] ^= 1 << int(rng.integers(8))
    elif fault in (1, 2):
        data[place : place + 1] = rng.bytes(1)
    elif fault == 3:
        data[place : place + 4] = int(rng.choice([0, 1, 255, 65_535, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
    elif fault == 4:
        del data[place : place + length]
    elif fault == 5:
        data[place:place] = data[place : place + length]
    elif fault == 6:
        data[place:place] = rng.bytes(length)
    elif rng.random() < 0.3:
        del data[place:]


def _with_checksums(data: bytes) -> bytes:
    """The PNG with correct CRCs in all chunks that its lengths lead to."""
    result, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        body = data[place + 4 : place + 8 + length]
        if place + 12 + length > len(data):
            break
        result += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(result) + data[place:]


def outcome(data: bytes, options: EncodeOptions) -> str:
    """`packed`, the kind of cause that it was left out for, or `FAULT: ...`."""
    try:
        found = encode(data, options)
    except Rejected as error:
        cause = CAUSE.fullmatch(str(error))
        return cause[1] if cause else f"FAULT: left out without a cause: {error!r}"
    size = found.width, found.height
    if not options.check:  # unchecked images pass by their header alone, and Pillow may not be able to read them
        header = read_header(found.jpeg)
        fits = header is not None and (header.width, header.height) in (size, size[::-1])
        return "packed" if fits and found.jpeg.endswith(END) else f"FAULT: packed as {size}, by its header {header}"
    with Image.open(io.BytesIO(found.jpeg)) as image:
        image.load()
        if image.size != size or not found.jpeg.endswith(END):
            return f"FAULT: packed as {size}, is {image.size}"
    return "packed"


def _work(pipe: Connection, seed: int, start: int, stop: int) -> None:
    warnings.simplefilter("ignore")  # about damaged EXIF data in packed images
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in C code as well
    for number in range(start, stop):
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            found = outcome(damaged(seed, number), OPTIONS[number % len(OPTIONS)])
        except Exception as error:
            found = f"FAULT: {type(error).__name__}: {error}"
        pipe.send(found)
    os._exit(0)


def run(count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """The number of inputs for each outcome, and the faults."""
    context = multiprocessing.get_context("spawn")
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    number = 0
    while number < count:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, seed, number, count), daemon=True)
        process.start()
        there.close()
        while number < count:
            try:
                found = here.recv()
            except EOFError:
                process.join()
                cause = "HANG" if process.exitcode == -signal.SIGPROF else f"CRASH (exit code {process.exitcode})"
                found = f"FAULT: {cause}"
            outcomes[found.split(":")[0]] += 1
            if found.startswith("FAULT"):
                faults.append(f"input {number}: {found}")
            number += 1
            if "HANG" in found or "CRASH" in found:
                break
        process.join()
    return outcomes, faults


def main() -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcomes, faults = run(args.count, args.seed)
    for name, times in outcomes.most_common():
        print(f"{times:8,} {name}")
    print("\n".join(faults))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
