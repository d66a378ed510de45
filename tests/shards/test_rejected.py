"""Images that packing rejects: truncated, damaged, too large or small, or with headers that lie."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shards.images.encode import Rejected, encode
from shards.images.options import EncodeOptions
from tests.support import pictures


@pytest.mark.parametrize("cut", [1, 2, 3, 50, 400, 2000])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpegs_are_rejected(cut, progressive):
    data = pictures.jpeg(pictures.gradient(120, 100, seed=1), progressive=progressive)
    with pytest.raises(Rejected, match=r"^truncated"):
        encode(data[:-cut])


def test_truncated_jpeg_with_a_thumbnail_is_rejected():
    """The thumbnail has an end marker of its own, which must not be taken for the image's."""
    exif = Image.Exif()
    exif[0x010E] = pictures.jpeg(pictures.gradient(16, 16)).decode("latin-1")
    data = pictures.jpeg(pictures.gradient(120, 100, seed=1), exif=exif.tobytes())
    for ending in (b"", b"\n", bytes(700)):
        with pytest.raises(Rejected):
            encode(data[:-300] + ending)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_truncated_files_are_rejected(kind):
    data = pictures.encoded(pictures.gradient(120, 100, seed=1), kind)
    with pytest.raises(Rejected):
        encode(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"not an image, but a text\n" * 10, "not an image: text"),
        (b"  <!DOCTYPE html><html>404</html>", "not an image: HTML"),
        (bytes(5000), "not an image: zero bytes"),
        (b"\0\1\2\3\xff\xfe" * 100, "not an image: no known format"),
        (b"\xff\xd8\xff\xe0" + bytes(200), "damaged|truncated|not"),
        (b"\0\0\0\x18ftypheic" + bytes(100), r"damaged: |needs pip install 'fastmoco\[formats\]': HEIC"),
        (b"\0\0\0\x18ftypmif1" + bytes(100), "unsupported: HEIF of another codec than HEVC and AV1"),
    ],
)
def test_other_files_are_rejected_with_a_cause(data, cause):
    with pytest.raises(Rejected, match=cause):
        encode(data)


def test_causes_are_the_same_in_every_run():
    texts = set()
    for _ in range(3):
        with pytest.raises(Rejected) as caught:
            encode(b"GIF89a" + bytes(range(100)))
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert "0x" not in texts.pop()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 200), (200, 3)])
def test_tiny_images_are_rejected(width, height):
    with pytest.raises(Rejected, match=r"too small: .* 8 on a side"):
        encode(pictures.encoded(Image.new("RGB", (width, height)), "PNG"))


@pytest.mark.parametrize(("width", "height"), [(13_000, 14_000), (60_000, 60_000), (65_535, 8)])
def test_bombs_are_rejected_by_their_header(width, height):
    with pytest.raises(Rejected, match=r"too large: .*pixels, over"):
        encode(pictures.png_of_size(width, height))


def _liars() -> dict[str, tuple[bytes, str]]:
    """Files whose header claims another size than their data have, and the cause given for each."""
    huge = pictures.png_of_size(15_000, 13_000)
    gif = bytearray(pictures.encoded(pictures.gradient().convert("P"), "GIF"))
    frame = gif.index(b"\x2c\0\0\0\0")
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 15_000, 13_000)
    ico = struct.pack("<HHHBBBBHHII", 0, 1, 1, 64, 64, 0, 0, 1, 32, len(huge), 22) + huge
    icns = b"ic07" + struct.pack(">I", 8 + len(huge)) + huge
    bmp = bytearray(pictures.encoded(pictures.gradient(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 12_000, -12_000)
    webp = bytearray(pictures.encoded(pictures.gradient(), "WEBP"))
    start = webp.index(b"\x9d\x01\x2a") + 3
    webp[start : start + 4] = struct.pack("<HH", 16_000, 16_000)
    return {
        "PNG": (huge, "too large"),
        "GIF": (bytes(gif), "too large"),
        "ICO": (ico, "too large"),
        "ICNS": (b"icns" + struct.pack(">I", 8 + len(icns)) + icns, "too large"),
        "BMP": (bytes(bmp), "truncated"),
        "WebP": (bytes(webp), "too large|damaged"),
    }


# prints the cause for each file, and by how many MiB the process grew at most
ENCODE_AND_WATCH = """
import json, re, sys
from pathlib import Path
from shards.images.encode import Rejected, encode

def peak_mib():
    found = re.findall(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    return int(found[0]) / 1024 if found else 0.0

for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = peak_mib()
    try:
        cause = f"accepted: {encode(data)}"
    except Rejected as error:
        cause = str(error)
    print(json.dumps([cause, peak_mib() - before]))
"""


def test_lying_headers_are_found_before_memory_is_taken(tmp_path):
    """In a process of its own: threads that earlier tests have left may take memory of this one meanwhile."""
    liars = _liars()
    for kind, (data, _) in liars.items():
        (tmp_path / kind).write_bytes(data)
    line = [sys.executable, "-c", ENCODE_AND_WATCH, *(str(tmp_path / kind) for kind in liars)]
    printed = subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()
    for (kind, (_, cause)), found in zip(liars.items(), printed, strict=True):
        said, mib = json.loads(found)
        assert re.match(cause, said), (kind, said)
        assert mib < 64, (kind, mib)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_limits_hold_for_every_format(kind):
    data = pictures.encoded(pictures.gradient(), kind)
    assert encode(data, EncodeOptions(max_pixels=64 * 48, max_side=64)).width == 64
    with pytest.raises(Rejected, match=r"too large: .* pixels, over 3,071 in all"):
        encode(data, EncodeOptions(max_pixels=64 * 48 - 1))
    with pytest.raises(Rejected, match="too large: 64 x 48 pixels, over 63 on a side"):
        encode(data, EncodeOptions(max_side=63))
    assert encode(data, EncodeOptions(resize=24, max_side=32)).width == 32
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own limit is unchanged


def test_mutated_files_never_escape():
    """Random damage gives an image or a Rejected, nothing else."""
    rng = np.random.default_rng(0)
    rejected = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = np.frombuffer(pictures.encoded(pictures.gradient(seed=1), kind), np.uint8)
        for _ in range(60):
            data = whole.copy()
            places = rng.integers(0, min(len(data), 400), 4)
            data[places] = rng.integers(0, 256, 4)
            try:
                encode(data.tobytes())
            except Rejected as error:
                rejected += 1
                assert str(error)
    assert rejected > 50
