from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from shards.images.convert import orientation
from shards.images.encode import Rejected, encode
from shards.images.jpeg import BASELINE, PROGRESSIVE, end_of_image, holds_all_blocks, read_header, scans
from shards.images.options import EncodeOptions
from tests.support import pictures

UNCHECKED = EncodeOptions(check=False)


def header_of(data: bytes):
    header = read_header(data)
    assert header is not None
    return header


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_header_agrees_with_pillow(mode, progressive):
    data = pictures.jpeg(pictures.gradient(67, 45).convert(mode), progressive=progressive)
    header = header_of(data)
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size
        assert header.components == len(image.getbands())
    assert header.frame == (PROGRESSIVE if progressive else BASELINE)
    assert header.plain == (mode != "CMYK")
    assert data[header.data - 3 : header.data - 2] in (b"\0", b"\x01")  # the scan header's spectral selection


def test_fill_bytes_before_markers_are_skipped():
    data = pictures.jpeg(pictures.gradient())
    place = data.index(b"\xff\xc0")
    assert header_of(data[:place] + b"\xff\xff\xff" + data[place:]).width == 64


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG", b"\xff\xd8" + bytes(500)])
def test_no_header(data):
    assert read_header(data) is None


def test_a_scan_without_a_frame_is_no_header():
    data = pictures.jpeg(pictures.gradient())
    assert read_header(data.replace(b"\xff\xc0", b"\xff\xe5")) is None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_of_both_byte_orders_and_types(order, kind):
    value = struct.pack(order + ("H2x" if kind == 3 else "I"), 6)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    before = struct.pack(order + "HHI4x", 0x010F, 2, 4)
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    exif = start + struct.pack(order + "H", 2) + before + entry
    assert orientation(exif) == orientation(b"Exif\0\0" + exif) == 6
    assert orientation(exif[:-5]) == 1


def test_unchecked_pass_through_by_the_header_alone(monkeypatch):
    data = pictures.jpeg(pictures.gradient())
    monkeypatch.setattr(Image, "open", None)  # Pillow is not asked at all
    found = encode(data + b"\0\0", UNCHECKED)
    assert (found.data, found.height, found.width) == (data, 48, 64)


def test_unchecked_passes_damage_that_a_check_finds():
    data = pictures.jpeg(pictures.gradient(200, 200, seed=1), progressive=True)
    place = data.index(b"\xff\xc4")
    damaged = data[:place] + b"\xff\xc4\0\x13\0" + bytes([255] * 16) + data[place:]  # an impossible Huffman table
    assert encode(damaged, UNCHECKED).data == damaged
    with pytest.raises(Rejected, match=r"^(damaged|truncated)"):
        encode(damaged)


@pytest.mark.parametrize("options", [EncodeOptions(), UNCHECKED])
def test_truncation_and_size_are_seen_without_decoding(options):
    data = pictures.jpeg(pictures.gradient(120, 100, seed=1))
    with pytest.raises(Rejected, match="truncated: the JPEG has no end marker"):
        encode(data[:-2], options)
    tiny = pictures.jpeg(Image.new("RGB", (7, 30)))
    with pytest.raises(Rejected, match="too small"):
        encode(tiny, options)
    with pytest.raises(Rejected, match=r"too large: 120 x 100 pixels, over 11,999 in all"):
        encode(data, EncodeOptions(max_pixels=11_999, check=options.check))
    with pytest.raises(Rejected, match=r"too large: 120 x 100 pixels, over 119 on a side"):
        encode(data, EncodeOptions(max_side=119, check=options.check))


def test_appended_data_with_an_end_marker_inside_is_cut_off():
    """As in motion photos: a video follows the JPEG, and it may contain any two bytes."""
    data = pictures.jpeg(pictures.gradient())
    assert encode(data + b"\0\0\0\x18ftypmp42" + b"\xff\xd9" + bytes(999)).data == data


def test_extraneous_bytes_before_the_end_marker_pass_through():
    """Decoders warn and read on; well-known collections contain such files."""
    data = pictures.jpeg(pictures.gradient())
    for extra in (b"\0", b"\xff\0" * 3, bytes(40)):
        odd = data[:-2] + extra + b"\xff\xd9"
        assert encode(odd).data == odd


@pytest.mark.parametrize("progressive", [False, True])
def test_an_image_larger_than_its_data_can_be_is_rejected(progressive):
    data = bytearray(pictures.jpeg(pictures.gradient(), progressive=progressive))
    place = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 13_000, 13_000)
    for options in (EncodeOptions(), UNCHECKED):
        with pytest.raises(Rejected, match=r"truncated: .* cannot hold 13000 x 13000 pixels"):
            encode(bytes(data), options)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [1, 75])
def test_the_flattest_image_holds_all_of_its_blocks(progressive, quality):
    data = pictures.jpeg(Image.new("L", (4000, 3000)), progressive=progressive, quality=quality, optimize=True)
    assert holds_all_blocks(data, header_of(data))
    assert encode(data).data == data


def test_endless_scans_are_rejected():
    data = pictures.jpeg(pictures.gradient(), progressive=True)
    last = data.rindex(b"\xff\xda")
    assert scans(data, header_of(data)) < 20
    with pytest.raises(Rejected, match=r"too large: a progressive JPEG of .* scans, over 100"):
        encode(data[:last] + data[last:-2] * 120 + b"\xff\xd9")


def test_an_end_marker_in_the_header_is_not_the_images():
    data = pictures.jpeg(pictures.gradient(), comment=b"\xff\xd9" * 4)
    assert end_of_image(data[:-2] + b"\n", header_of(data)) == 0
    assert end_of_image(data, header_of(data)) == len(data)
