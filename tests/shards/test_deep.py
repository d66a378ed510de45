"""16-bit images: every value is kept, by decoders that packing does not use; what has no 16 bits is left out."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from shards.images import deep
from shards.images.arrays import pixels_16
from shards.images.encode import Encoded, Rejected, encode, reduced
from shards.images.options import EncodeOptions
from shards.images.resample import shrink_16
from tests.support.pictures import cells, decoded_png_16, encoded, gradient, jpeg, png_16, png_chunk
from tests.support.tiffs import CMYK, DEFLATE, GREY, GREY_INVERTED, LAB, RGB, tiff

pytest.importorskip("imagecodecs")
KEEP = EncodeOptions(keep_16_bit=True)
NOISE = np.random.default_rng(1).integers(0, 65536, (48, 64, 5), np.uint16)
ALL = np.arange(65536, dtype=np.uint16).reshape(256, 256)
COLOURS = np.stack([ALL, ALL[::-1], ALL.T], axis=-1)


def decoded(found: Encoded) -> np.ndarray:
    """uint16 [H, W] or [H, W, 3] of a packed image, by the specification, and grey by Pillow as well."""
    pixels = decoded_png_16(found.data)
    if pixels.ndim == 2:
        image = Image.open(io.BytesIO(found.data))
        assert image.mode == "I;16" and not image.info
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert (found.height, found.width) == pixels.shape[:2] and pixels.dtype == np.uint16
    assert found.channels == (1 if pixels.ndim == 2 else 3) and found.decoder == "imagecodecs"
    return pixels


def refused(data: bytes, options: EncodeOptions = KEEP) -> str:
    """The reason to leave an image out, the same in packing and in comparing."""
    for work in (lambda: encode(data, options), lambda: reduced(data, options, 135)):
        with pytest.raises(Rejected) as caught:
            work()
    return str(caught.value)


@pytest.mark.parametrize("pixels", [ALL, COLOURS], ids=["grey", "RGB"])
def test_every_value_is_kept(pixels):
    kind = GREY if pixels.ndim == 2 else RGB
    files = [png_16(pixels), png_16(pixels, interlaced=True), png_16(pixels, png_chunk(b"gAMA", b"\0\0\xb1\x8f"))]
    files += [
        tiff(pixels, kind, order=order, compression=compression, planar=planar, wide=wide)
        for order in ("<", ">")
        for compression in (1, DEFLATE)
        for planar in (False, True)
        for wide in (False, True)
    ]
    if pixels.ndim == 2:
        image = Image.fromarray(pixels)
        files += [encoded(image, "PNG"), encoded(image, "TIFF", compression="tiff_lzw")]
        files.append(encoded(image, "TIFF", save_all=True, append_images=[Image.fromarray(NOISE[..., 0])]))
        inverted = tiff(65535 - pixels, GREY_INVERTED)
        files.append(inverted)
        np.testing.assert_array_equal(pixels_16(Image.open(io.BytesIO(inverted))), pixels)
    packed = [encode(data, KEEP) for data in files]
    for found in packed:
        assert found.data == packed[0].data  # equal images are equal files
    np.testing.assert_array_equal(decoded(packed[0]), pixels)
    channels = pixels.reshape(65536, -1).T
    np.testing.assert_array_equal(packed[0].counts, [np.bincount(each, minlength=65536) for each in channels])


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("pixels", [NOISE[..., 0], NOISE[..., :3]], ids=["grey", "RGB"])
def test_orientations_are_applied(turned, pixels):
    turns = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
    quarters, mirrored = turns.get(turned, (0, False))
    # mirrored left to right after quarter turns against the clock, as EXIF's table has them
    expected = np.rot90(pixels, quarters)
    expected = expected[:, ::-1] if mirrored else expected
    exif = png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([turned]) + bytes(6))
    tag = {274: ("H", [turned])}
    for data in (png_16(pixels, exif), tiff(pixels, GREY if pixels.ndim == 2 else RGB, tags=tag)):
        np.testing.assert_array_equal(decoded(encode(data, KEEP)), expected)
        if pixels.ndim == 2:  # of 16 bits Pillow knows grey alone
            np.testing.assert_array_equal(pixels_16(Image.open(io.BytesIO(data))), expected)


def test_transparent_pixels_are_blended_with_white():
    for channels in (2, 4):
        pixels = NOISE[..., :channels]
        alpha = pixels[..., -1:].astype(np.float64) / 65535
        expected = np.rint(pixels[..., :-1] * alpha + 65535 * (1 - alpha)).squeeze()
        np.testing.assert_array_equal(decoded(encode(png_16(pixels), KEEP)), expected)
        opaque = pixels.copy()
        opaque[..., -1] = 65535
        np.testing.assert_array_equal(decoded(encode(png_16(opaque), KEEP)), opaque[..., :-1].squeeze())
    key = png_chunk(b"tRNS", struct.pack(">H", 777))
    data, expected = png_16(ALL, key), np.where(ALL == 777, 65535, ALL)
    np.testing.assert_array_equal(decoded(encode(data, KEEP)), expected)
    np.testing.assert_array_equal(pixels_16(Image.open(io.BytesIO(data))), expected)


def lanczos(pixels: np.ndarray, outputs: int) -> np.ndarray:
    """Along the first axis in float64, by the filter's definition."""
    scale = len(pixels) / outputs
    x = (np.arange(len(pixels)) + 0.5 - (np.arange(outputs)[:, None] + 0.5) * scale) / scale
    taps = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return np.tensordot(taps / taps.sum(axis=1, keepdims=True), pixels, 1)


@pytest.mark.parametrize(("width", "height"), [(16, 12), (40, 30), (64, 11), (63, 48), (64, 48)])
@pytest.mark.parametrize("pixels", [NOISE[..., 0], NOISE[..., :3], cells()], ids=["noise", "RGB", "cells"])
def test_resizing_is_that_of_real_numbers(pixels, width, height):
    expected = lanczos(pixels.astype(np.float64), height)
    expected = lanczos(expected.swapaxes(0, 1), width).swapaxes(0, 1).clip(0, 65535)
    found = shrink_16(pixels, (width, height))
    # half a level by the result's rounding; taps are multiples of 2 ** -22, 1/64 of a level of 65,536
    assert np.abs(found - expected).max() <= 0.55
    # in every value of a flat image, so that no brightness is lost
    flat = np.full((48, 64), 65535, np.uint16)
    assert (shrink_16(flat, (width, height)) == 65535).all() and (shrink_16(flat // 9, (width, height)) == 7281).all()


def test_resizing_in_packing():
    found = encode(png_16(cells(400, 300)), EncodeOptions(keep_16_bit=True, resize=100))
    np.testing.assert_array_equal(decoded(found), shrink_16(cells(400, 300), (133, 100)))
    turned = encode(tiff(cells(400, 300), GREY, tags={274: ("H", [6])}), EncodeOptions(keep_16_bit=True, resize=100))
    np.testing.assert_array_equal(decoded(turned), np.rot90(decoded(found), -1))
    assert encode(png_16(cells()), EncodeOptions(keep_16_bit=True, resize=100)).width == 64  # never enlarged


FLOATS = NOISE[..., 0].astype(np.float32)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (jpeg(gradient()), "not 16 bits: JPEG, and only PNG and TIFF are taken; leave --keep-16-bit out to pack"),
        (encoded(gradient(), "WEBP"), "not 16 bits: WEBP, and"),
        (b"P5 64 48 65535\n" + NOISE[..., 0].tobytes(), "unsupported: PPM, and only PNG and TIFF are taken; leave"),
        (encoded(gradient(), "PNG"), "not 16 bits: a PNG of 8 bits; leave --keep-16-bit out"),
        (encoded(gradient().convert("P"), "PNG"), "not 16 bits: a PNG of 8 bits"),
        (tiff(NOISE[..., 0].astype(np.uint8), GREY), "not 16 bits: TIFF of 8-bit values, 1 a pixel"),
        (tiff(NOISE[..., 0].astype(np.int16), GREY), "unsupported: TIFF of 16-bit signed values, 1 a pixel"),
        (tiff(FLOATS, GREY), "unsupported: TIFF of 32-bit float values, 1 a pixel"),
        (tiff(NOISE[..., 0].astype(np.uint32), GREY), "unsupported: TIFF of 32-bit values"),
        (tiff(NOISE, GREY), r"unsupported: TIFF of 16-bit values, 5 a pixel \(photometric 1, compression 1\); --keep"),
        (tiff(NOISE[..., :4], RGB, tags={338: ("H", [2])}), "unsupported: TIFF of 16-bit values, 4 a pixel"),
        (tiff(NOISE[..., :2], GREY), "unsupported: TIFF of 16-bit values, 2 a pixel"),
        (tiff(NOISE[..., :4], CMYK), r"unsupported: TIFF of 16-bit values, 4 a pixel \(photometric 5"),
        (tiff(NOISE[..., :3], LAB), r"unsupported: TIFF of 16-bit values, 3 a pixel \(photometric 8"),
        (tiff(NOISE[..., 0], 3), r"unsupported: .*\(photometric 3"),
        (tiff(NOISE[..., 0], GREY, tags={32997: ("I", [3])}), r"unsupported: .* of the shape \[3, 48, 64\]"),
        (b"", "empty|not an image"),
        (b"<html>", "not an image: HTML"),
        (tiff(NOISE[..., :3], GREY, planar=True), "unsupported: TIFF of planar 16-bit values, 3 a pixel"),
        (b"II+\0" + bytes(100), "damaged|not an image"),
        (png_16(NOISE[..., 0])[:-40], "truncated: "),
        (png_16(NOISE[..., 0])[:30], "damaged: begins as a PNG, but its header cannot be read"),
        (png_16(NOISE[..., 0], rows=30), "truncated: |damaged: "),
        (png_16(NOISE[..., 0], rows=30) + bytes(6000), "truncated: |damaged: "),
        (png_16(NOISE[:, :7, 0]), "too small: 7 x 48 pixels"),
        (tiff(NOISE[..., 0], GREY)[:-30], "damaged: the TIFF does not say where all of its"),
        (tiff(NOISE[:20, :, 0], GREY, tags={257: ("I", [48]), 278: ("I", [48])}), "truncated: Read error on strip 0"),
        (tiff(NOISE[:20, :, 0], GREY, compression=DEFLATE, tags={257: ("I", [48]), 278: ("I", [48])}), "damaged: "),
        (tiff(NOISE[..., 0], GREY, tags={273: ("I", [])}), "damaged: the TIFF does not say where all"),
        (tiff(NOISE[..., 0], GREY, tags={273: ("I", [10**6])}), "truncated: "),
        (tiff(NOISE[..., 0], GREY, tags={256: ("I", [2**31]), 257: ("I", [2**31])}), "too large: "),
        (tiff(NOISE[..., 0], GREY, tags={256: ("I", [60000]), 257: ("I", [2000])}), "truncated: |damaged: "),
        (tiff(NOISE[..., 0], GREY, tags={322: ("I", [2**30]), 323: ("I", [2**9]), 324: ("I", [8])}), "too large: tile"),
    ],
)  # fmt: skip
def test_others_are_left_out_with_a_cause(data, cause):
    found = refused(data)
    assert found and re.match(cause, found), found
    assert found.isprintable() and "<" not in found


def test_a_bomb_is_refused_by_its_header_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 60000, 60000, 16, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", bytes(1000))
    assert refused(bomb).startswith("too large: 60000 x 60000 pixels, over 178,956,970 in all")
    assert refused(png_16(ALL), EncodeOptions(keep_16_bit=True, max_pixels=65535)).startswith("too large: 256 x 256")
    assert refused(png_16(NOISE[:9, :, 0]), EncodeOptions(keep_16_bit=True, max_aspect=5)).startswith("too long: ")
    assert refused(png_16(NOISE[..., 0]), EncodeOptions(keep_16_bit=True, min_side=49)).startswith("too small: ")


def test_blank_is_judged_by_the_values_that_an_image_has():
    blank = EncodeOptions(keep_16_bit=True, drop_blank=True)
    assert refused(png_16(np.full((48, 64), 312, np.uint16)), blank) == "blank: a single colour, grey 312"
    noise = np.random.default_rng(0).normal(2000, 9, (480, 640)).astype(np.uint16)
    assert refused(png_16(noise), blank).startswith("blank: a single colour, grey 199")
    assert encode(png_16(cells()), blank).channels == 1  # which is dark: below 1/16 of the range
    assert encode(png_16(cells(channels=3)), blank).channels == 3


def test_without_the_option_16_bits_become_8_and_are_counted():
    ramp = (ALL // 257 * 257).astype(np.uint16)
    for data in (png_16(ramp), tiff(ramp, GREY, order=">"), tiff(65535 - ramp, GREY_INVERTED)):
        found = encode(data, EncodeOptions(quality=95))
        assert found.reduced and found.channels == 1 and found.counts is None
        assert np.abs(np.asarray(Image.open(io.BytesIO(found.data))).astype(int) - ramp // 257).max() <= 3
    assert encode(png_16(COLOURS)).reduced and encode(png_16(NOISE[..., :4])).reduced
    signed = tiff((NOISE[..., 0] // 2).astype(np.int16), GREY)  # which --keep-16-bit does not take
    for data in (jpeg(gradient()), encoded(gradient(), "PNG"), signed):
        assert not encode(data).reduced


def test_comparisons_see_dark_images_in_their_own_range():
    image, height, width = reduced(tiff(cells(turned := 64, 48), GREY, tags={274: ("H", [6])}), KEEP, 135)
    assert (height, width) == (48, turned) and image.size == (48, 64)
    assert image.getextrema() == (0, 255)


def test_a_packed_png_is_checked_as_strictly_as_it_is_written():
    good = encode(png_16(NOISE[..., :3]), KEEP).data
    np.testing.assert_array_equal(deep.decoded(good, 64, 48), NOISE[..., :3])
    form = "is no 16-bit PNG of 64 x 48 pixels, grey or RGB and not interlaced"
    for data, cause in (
        (png_16(NOISE[:47, :, 0]), form),
        (png_16(NOISE[..., 0], interlaced=True), form),
        (png_16(NOISE[..., :4]), form),
        (encoded(gradient(), "PNG"), form),
        (png_16(NOISE[..., 0], png_chunk(b"tRNS", b"\0\0")), "is a PNG with transparency"),
        (good[:-30], "cannot be decoded: truncated: "),
    ):
        with pytest.raises(Rejected, match=cause):
            deep.decoded(data, 64, 48)
