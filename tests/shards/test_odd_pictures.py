"""Files whose pixels are sound: packed with these pixels, or left out by the name of what is not supported."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from shards.foreign.tar_index import index_tar
from shards.images import plugins
from shards.images.arrays import pixels_16
from shards.images.convert import upright
from shards.images.encode import Rejected, encode
from shards.images.formats import EXTENSIONS
from shards.images.options import EncodeOptions
from tests.support import pictures
from tests.support.tars import tar_bytes
from tests.support.tiffs import (
    CMYK,
    COLOUR_FILTER,
    DEFLATE,
    GREY,
    GREY_INVERTED,
    LAB,
    NONE,
    RGB,
    Order,
    directory,
    tiff,
)

TRUTH = np.asarray(pictures.gradient())
GREY_TRUTH = np.asarray(pictures.gradient().convert("L"))
FINE = EncodeOptions(quality=95)


def assert_packed(data: bytes, truth: np.ndarray) -> None:
    found = np.asarray(Image.open(io.BytesIO(encode(data, FINE).data)).convert("RGB")).astype(int)
    expected = truth if truth.ndim == 3 else np.repeat(truth[..., None], 3, axis=2)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 2


def png(*extra: bytes, last: bytes = b"") -> bytes:
    """The truth with chunks before and after its pixels."""
    data = pictures.png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in TRUTH)))
    head = pictures.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + data + last + pictures.png_chunk(b"IEND", b"")


def wrong_checksum(chunk: bytes) -> bytes:
    return chunk[:-4] + b"\0\0\0\1"


@pytest.mark.parametrize(
    "chunk",
    [
        pictures.png_chunk(b"iCCP", b"printer\0\0" + zlib.compress(os.urandom(700_000) + bytes(800_000))),
        pictures.png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 3_000_000)),
        pictures.png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        wrong_checksum(pictures.png_chunk(b"tEXt", b"Comment\0hello")),
        pictures.png_chunk(b"iCCP", b"no profile at all"),
        pictures.png_chunk(b"zTXt", b"Raw profile type exif\0\0no deflate"),
        pictures.png_chunk(b"iTXt", b"Raw profile type exif\0\1"),
        pictures.png_chunk(b"eXIf", b"II*\0"),
        pictures.png_chunk(b"gAMA", b""),
        pictures.png_chunk(b"pHYs", b"\0"),
        pictures.png_chunk(b"sRGB", b""),
        pictures.png_chunk(b"cHRM", b"\0"),
        wrong_checksum(pictures.png_chunk(b"tRNS", bytes(6))),
        pictures.png_chunk(b"tRNS", bytes(2)),
    ],
)
def test_a_png_is_packed_whatever_its_ancillary_chunks(chunk):
    assert_packed(png(chunk), TRUTH)
    assert_packed(png(last=chunk), TRUTH)


def test_the_transparency_of_a_png_counts():
    image = Image.new("P", (64, 48), 3)
    image.putpalette([10, 20, 30] * 256)
    data = pictures.encoded(image, "PNG", transparency=3)
    assert_packed(data[:33] + wrong_checksum(pictures.png_chunk(b"tEXt", b"a\0b")) + data[33:], np.full((48, 64), 255))


def in_halves(depth: int, left: list[int], right: list[int], key: list[int], colours: int) -> bytes:
    """A PNG of 16 x 16 pixels whose left half has one colour, its right half another, and `key` is transparent."""
    numbers = "".join(f"{value:0{depth}b}" for value in [*left * 8, *right * 8])
    line = b"\0" + int(numbers, 2).to_bytes(len(numbers) // 8, "big")
    chunks = [
        pictures.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, colours, 0, 0, 0)),
        pictures.png_chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b"",
        pictures.png_chunk(b"IDAT", zlib.compress(line * 16)) + pictures.png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("depth", "key", "other", "level"),
    [
        (1, [0], [1], 255),
        (1, [1], [0], 0),
        (2, [1], [2], 170),
        (4, [5], [9], 153),
        (8, [50], [90], 90),
        (16, [5000], [9000], 35),
        (16, [0], [255], 1),
        (8, [10, 20, 30], [90, 90, 90], 90),
        (16, [0x1020] * 3, [0x2055] * 3, 0x20),  # the upper byte of one is the lower byte of the other
    ],
)
def test_the_transparent_colour_of_a_png_is_white_whatever_its_bits(depth, key, other, level):
    channels = len(key)
    found = encode(in_halves(depth, key, other, key, 2 if channels == 3 else 0), FINE)
    pixels = np.asarray(Image.open(io.BytesIO(found.data)).convert("L")).astype(int)
    assert found.channels == channels and np.abs(pixels[:, [2, 13]] - [255, level]).max() <= 2


def test_a_grey_png_of_16_bits_is_grey_with_alpha_too():
    found = encode(in_halves(16, [5000, 0], [9000, 65535], [], 4), FINE)
    pixels = np.asarray(Image.open(io.BytesIO(found.data))).astype(int)
    assert found.channels == 1 and found.reduced and np.abs(pixels[:, [2, 13]] - [255, 35]).max() <= 2


def test_damage_to_critical_chunks_is_found():
    whole = png(pictures.png_chunk(b"tEXt", b"a\0b"))
    place = whole.index(b"IDAT") + 400
    damaged = {
        "size": whole[:29] + b"\0\0\0\1" + whole[33:],
        "pixels": whole[:place] + bytes(40) + whole[place + 40 :],
        "end": whole[:-40],
        "length of the text": whole[:33] + b"\x7f" + whole[34:],  # it leads beyond the file
    }
    for data in damaged.values():
        with pytest.raises(Rejected, match=r"^(damaged|truncated)"):
            encode(data)


def test_the_first_frame_of_an_animated_png_is_packed():
    frames = [Image.new("RGB", (64, 48), "red")]
    data = pictures.encoded(pictures.gradient(), "PNG", save_all=True, append_images=frames)
    assert b"acTL" in data
    assert_packed(data, TRUTH)


EXIF_6 = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
DIGITS = f"\nexif\n{len(EXIF_6) + 6:8}\n{(b'Exif' + bytes(2) + EXIF_6).hex()}\n"


@pytest.mark.parametrize("keyword", ["Raw profile type exif", "Raw profile type APP1"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt compressed"])
def test_the_orientation_that_imagemagick_writes_is_applied(keyword, kind):
    info = PngImagePlugin.PngInfo()
    if kind.startswith("iTXt"):
        info.add_itxt(keyword, DIGITS, zip=kind.endswith("compressed"))
    else:
        info.add_text(keyword, DIGITS, zip=kind == "zTXt")
    assert_packed(pictures.encoded(pictures.gradient(), "PNG", pnginfo=info), np.rot90(TRUTH, -1))


def test_the_orientation_of_an_exif_chunk_counts_before_a_profile():
    profile = pictures.png_chunk(b"tEXt", b"Raw profile type exif\0" + DIGITS.encode())
    upright = pictures.png_chunk(b"eXIf", EXIF_6.replace(b"\x06\0\0\0", b"\x01\0\0\0"))
    assert_packed(png(profile, upright), TRUTH)
    assert_packed(png(wrong_checksum(upright), profile), np.rot90(TRUTH, -1))
    assert_packed(png(last=pictures.png_chunk(b"eXIf", EXIF_6)), np.rot90(TRUTH, -1))


def bmp(alpha: np.ndarray) -> bytes:
    """A BMP with a V4 header, whose masks name an alpha plane."""
    pixels = np.dstack([TRUTH[::-1, :, ::-1], alpha[::-1]]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 64, 48, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks + b"Win "
    return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + head + bytes(48) + pixels


EMPTY = np.zeros((48, 64), np.uint8)


def test_an_empty_alpha_plane_is_ignored_where_programs_leave_it_empty():
    assert_packed(bmp(EMPTY), TRUTH)
    transparent = np.dstack([TRUTH, EMPTY])
    assert_packed(tiff(transparent, tags={338: ("H", [2])}), TRUTH)
    assert_packed(pictures.encoded(Image.fromarray(transparent), "DDS"), TRUTH)
    assert_packed(pictures.encoded(Image.fromarray(transparent), "ICO", sizes=[(64, 48)], bitmap_format="bmp"), TRUTH)


def test_other_alpha_planes_count():
    half = EMPTY.copy()
    half[:, 32:] = 255
    expected = TRUTH.copy()
    expected[:, :32] = 255
    assert_packed(bmp(half), expected)
    assert_packed(tiff(np.dstack([TRUTH, half]), tags={338: ("H", [2])}), expected)
    # Formats in which a program writes alpha only if it means it.
    assert_packed(pictures.encoded(Image.fromarray(np.dstack([TRUTH, EMPTY])), "PNG"), np.full((48, 64), 255))
    # Premultiplied: the colours are lost.
    assert_packed(tiff(np.dstack([TRUTH, EMPTY]), tags={338: ("H", [1])}), np.full((48, 64), 255))


@pytest.mark.parametrize(("order", "wide"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("planar", [False, True])
def test_tiffs_of_8_and_16_bits(planar, compression, order, wide):
    options = {"planar": planar, "compression": compression, "order": order, "wide": wide}
    opaque = np.full((48, 64, 1), 255, np.uint8)
    layouts = {
        "RGB": (TRUTH, RGB, {}),
        "RGB and alpha": (np.dstack([TRUTH, opaque]), RGB, {338: ("H", [2])}),
        "RGB and one more": (np.dstack([TRUTH, opaque]), RGB, {338: ("H", [0])}),
        "CMYK": (np.dstack([255 - TRUTH, 0 * opaque]), CMYK, {}),
    }
    for pixels, photometric, tags in layouts.values():
        for deep in (pixels, pixels.astype(np.uint16) * 257):
            assert_packed(tiff(deep, photometric, tags=tags, **options), TRUTH)
    bands = np.dstack([TRUTH, TRUTH[..., :2]])
    tags = {338: ("H", [0, 0])}
    assert_packed(tiff(bands, tags=tags, **options), TRUTH)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("wide", [False, True])
def test_tiffs_in_which_0_is_white(planar, compression, wide):
    options = {"planar": planar, "compression": compression, "wide": wide}
    assert_packed(tiff(255 - GREY_TRUTH, GREY_INVERTED, **options), GREY_TRUTH)
    assert_packed(tiff(65535 - GREY_TRUTH.astype(np.uint16) * 257, GREY_INVERTED, **options), GREY_TRUTH)


def test_the_white_of_a_tiff_of_12_bits_is_its_own():
    pairs = np.rint(GREY_TRUTH * (4095 / 255)).astype(np.uint16).reshape(48, 32, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    data = tiff(packed.reshape(48, 96), GREY, tags={256: ("I", [64]), 258: ("H", [12])})
    assert_packed(data, GREY_TRUTH)
    opened = Image.open(io.BytesIO(data))  # of an image in memory it is, too
    np.testing.assert_array_equal(np.asarray(upright(opened)), GREY_TRUTH)
    with pytest.raises(Rejected, match="not 16 bits: a TIFF of 12"):
        pixels_16(opened)


BANDS = np.dstack([TRUTH, TRUTH[..., :2]])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff(BANDS.astype(np.uint16), tags={338: ("H", [0, 0])}), "TIFF of 16-bit values, 5 a pixel"),
        (tiff(TRUTH.astype(np.float32)), "TIFF of 32-bit float values, 3 a pixel"),
        (tiff(TRUTH, LAB, planar=True), "TIFF of planar 8-bit values, 3 a pixel"),
        (tiff(GREY_TRUTH.astype(np.uint32) << 24, GREY), "TIFF of 32-bit values, 1 a pixel"),
        (tiff(GREY_TRUTH.astype(np.int8), GREY), "TIFF of 8-bit signed values"),
        (
            tiff(GREY_TRUTH.astype(np.float32), GREY, order=">", compression=DEFLATE),
            "big-endian TIFF of 32-bit float values",
        ),
        (tiff(np.dstack([GREY_TRUTH, GREY_TRUTH]), GREY, planar=True), "TIFF of planar 8-bit values, 2 a pixel"),
        (tiff(np.dstack([TRUTH, EMPTY]), RGB, planar=True), "TIFF of planar 8-bit values, 4 a pixel"),
        (tiff(TRUTH, GREY, planar=True), "TIFF of planar 8-bit values, 3 a pixel"),
        (tiff(BANDS.astype(np.float32), GREY_INVERTED, planar=True), "TIFF of planar 32-bit float values, 5 a pixel"),
        (tiff(GREY_TRUTH.astype(np.uint32) << 24, GREY, wide=True), "BigTIFF of 32-bit values, 1 a pixel"),
        (tiff(GREY_TRUTH.astype(np.int8), GREY, wide=True), "BigTIFF of 8-bit signed values"),
        (tiff(TRUTH, order=">", wide=True), "big-endian BigTIFF of 8-bit values, 3 a pixel"),
    ],
)
def test_tiffs_that_are_not_supported_are_named(data, kind):
    with pytest.raises(Rejected, match=f"^unsupported: {kind}"):
        encode(data)


def test_of_several_pages_the_first_is_packed_and_they_are_counted():
    for wide in (False, True):
        assert [encode(tiff(TRUTH, wide=wide, pages=pages)).several for pages in (1, 2)] == [False, True]
        deep = encode(tiff(GREY_TRUTH.astype(np.uint16) * 257, GREY, wide=wide))
        assert deep.reduced and not deep.several


def camera_raw(make: bytes, *, order: Order = "<", subfile: int = 1, sensor: int = COLOUR_FILTER) -> bytes:
    """A preview, and below it the directory of a larger picture of sensor values."""
    larger = {254: ("I", [0]), 256: ("I", [4000]), 257: ("I", [3000]), 262: ("H", [sensor])}
    below = directory(larger, 8, order)
    tags = {254: ("I", [subfile]), 271: ("s", make + b"\0"), 330: ("I", [8])}
    return tiff(TRUTH, tags=tags, below=below, order=order)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (camera_raw(b"NIKON CORPORATION"), "Nikon NEF"),
        (camera_raw(b"NIKON CORPORATION", order=">"), "Nikon NEF"),
        (camera_raw(b"SONY", subfile=0), "Sony ARW"),
        (camera_raw(b"SONY", sensor=32767), "Sony ARW"),
        (camera_raw(b"Some Camera", sensor=34892), "Some Camera"),
        (tiff(TRUTH, tags={271: ("s", b"Canon\0")}, below=b"CR\2\0"), "Canon CR2"),
        (tiff(TRUTH, tags={271: ("s", b"Phase One\0")}, below=b"IIII"), "Phase One"),
        (tiff(TRUTH, tags={50706: ("I", [4])}), "DNG"),
        (tiff(TRUTH, COLOUR_FILTER), "TIFF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(100), "Canon CR3"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(100), "Fujifilm RAF"),
        (b"IIU\0\x18\0\0\0" + bytes(100), "Panasonic RW2"),
        (b"IIRO\x08\0\0\0" + bytes(100), "Olympus ORF"),
        (b"\0MRM" + bytes(100), "Minolta MRW"),
        (b"FOVb" + bytes(100), "Sigma X3F"),
        (b"II\x1a\0\0\0HEAPCCDR" + bytes(100), "Canon CRW"),
    ],
)
def test_camera_raws_are_left_out_by_name(data, kind, monkeypatch):
    monkeypatch.setattr(plugins, "_module", lambda name: None)  # as if rawpy were not installed
    with pytest.raises(Rejected, match=rf"^needs pip install 'fastmoco\[formats\]': camera raw \({kind}\)$"):
        encode(data)


def test_a_tiff_of_a_camera_and_a_pyramid_are_no_raws():
    assert_packed(tiff(TRUTH, tags={271: ("s", b"NIKON CORPORATION\0")}), TRUTH)
    smaller = directory({254: ("I", [1]), 256: ("I", [32]), 257: ("I", [24]), 262: ("H", [RGB])}, 8)
    assert_packed(tiff(TRUTH, tags={330: ("I", [8])}, below=smaller), TRUTH)


def test_a_loop_of_directories_ends():
    """Each leads to itself, and so does its directory below."""
    looped = directory({256: ("I", [4000]), 330: ("I", [8])}, 8, following=8)
    assert_packed(tiff(TRUTH, tags={330: ("I", [8] * 9)}, below=looped), TRUTH)


def test_camera_raws_count_as_images():
    assert {b"nef", b"dng", b"cr2", b"cr3", b"arw", b"raf", b"rw2", b"orf", b"pef"} <= EXTENSIONS


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("1.png", png(pictures.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))), "needs converting: "),
        ("1.nef", camera_raw(b"NIKON CORPORATION"), r"needs converting: camera raw \(Nikon NEF\)"),
    ],
)
def test_indexing_leaves_odd_pictures_out(name, data, cause):
    found = index_tar(io.BytesIO(tar_bytes({name: data})), "some.tar", check=True)
    assert len(found.left_out) == 1
    assert re.match(cause, found.left_out[0].reason)
