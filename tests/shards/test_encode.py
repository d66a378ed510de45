from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from shards.images.encode import encode
from shards.images.jpeg import read_header
from shards.images.options import EncodeOptions
from tests.support import pictures


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def mean_error(data: bytes, expected: np.ndarray) -> float:
    return float(np.abs(pixels(data) - expected).mean())


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_plain_jpegs_pass_through(mode, progressive):
    data = pictures.jpeg(pictures.gradient().convert(mode), progressive=progressive)
    header = read_header(data)
    assert header is not None
    assert header.frame == (0xC2 if progressive else 0xC0)
    found = encode(data)
    assert found.data == data
    assert (found.height, found.width) == (48, 64)


def test_multi_picture_jpeg_passes_through():
    data = pictures.encoded(pictures.gradient(), "MPO", save_all=True, append_images=[pictures.gradient(32, 32)])
    assert encode(data).data == data


def test_bytes_after_the_end_are_cut_off():
    data = pictures.jpeg(pictures.gradient())
    assert encode(data + b"\r\n\0").data == data


def test_cmyk_becomes_rgb():
    found = encode(pictures.jpeg(pictures.gradient().convert("CMYK")))
    assert Image.open(io.BytesIO(found.data)).mode == "RGB"
    assert mean_error(found.data, np.asarray(pictures.gradient()).astype(int)) < 6


def test_ycck_becomes_rgb():
    """As Photoshop writes: inverted CMYK, its first three channels as YCbCr, which only Adobe's marker shows."""
    image = pictures.gradient()
    ycc = np.asarray(ImageOps.invert(image).convert("YCbCr"))
    ycck = np.concatenate([ycc, np.full((48, 64, 1), 255, np.uint8)], axis=-1)
    # Pillow inverts CMYK when it writes and marks it as Adobe's, with transform 0 (CMYK) where 2 means YCCK.
    data = bytearray(pictures.jpeg(Image.fromarray(255 - ycck, "CMYK"), quality=95))
    data[data.index(b"Adobe") + 11] = 2
    found = encode(bytes(data))
    assert Image.open(io.BytesIO(found.data)).mode == "RGB"
    assert mean_error(found.data, np.asarray(image).astype(int)) < 6


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("orientation", [1, 6])
def test_avif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = encode(pictures.encoded(pictures.gradient(), "AVIF", quality=95, exif=exif))
    expected = pictures.gradient() if orientation == 1 else pictures.gradient().transpose(Image.Transpose.ROTATE_270)
    assert (found.width, found.height) == expected.size
    assert mean_error(found.data, np.asarray(expected).astype(int)) < 6


@pytest.mark.parametrize("colours", [2, 6])
def test_16_bit_colour_png(colours):
    """16 bits a channel, which Pillow cannot write: RGB, and RGB with opaque alpha."""
    deep = np.asarray(pictures.gradient()).astype(">u2") * 257
    if colours == 6:
        deep = np.concatenate([deep, np.full((48, 64, 1), 65535, ">u2")], axis=-1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 64, 48, 16, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(pictures.png_chunk(*chunk) for chunk in chunks)
    assert mean_error(encode(data).data, np.asarray(pictures.gradient()).astype(int)) < 6


def test_16_bit_png_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    found = encode(pictures.encoded(Image.fromarray(ramp), "PNG"))
    expected = np.repeat((ramp / 257)[..., None], 3, axis=2)
    assert mean_error(found.data, expected) < 2
    assert np.unique(pixels(found.data)).size > 200


def test_float_and_32_bit_images_are_scaled():
    ramp = np.linspace(0, 1, 64 * 48).reshape(48, 64)
    for deep in ((ramp * 1.0).astype(np.float32), (ramp * 2e9).astype(np.int32)):
        found = encode(pictures.encoded(Image.fromarray(deep), "TIFF"))
        assert mean_error(found.data, np.repeat((ramp * 255)[..., None], 3, axis=2)) < 2


def test_transparency_is_laid_over_white():
    image = pictures.gradient().convert("RGBA")
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 32:] = 255
    image.putalpha(Image.fromarray(alpha))
    found = pixels(encode(pictures.encoded(image, "PNG"), EncodeOptions(quality=95)).data)
    assert found[:, :30].min() > 240
    assert np.abs(found[:, 34:] - np.asarray(pictures.gradient())[:, 34:]).mean() < 4


def test_transparent_colour_of_a_palette_is_white():
    image = Image.new("P", (64, 48), 3)
    image.putpalette([10, 20, 30] * 256)
    found = pixels(encode(pictures.encoded(image, "PNG", transparency=3)).data)
    assert found.min() > 250


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_is_taken(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    black = Image.new("RGB", (64, 48))
    data = pictures.encoded(pictures.gradient(), kind, save_all=True, append_images=[black], **options)
    assert mean_error(encode(data).data, np.asarray(pictures.gradient()).astype(int)) < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", [None, 24])
def test_orientation_is_baked_in_and_dropped(kind, orientation, resize):
    upright = pictures.gradient(64, 48)
    turns = [
        *(lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: np.rot90(np.fliplr(a), 1)),
        *(lambda a: np.rot90(a, 1), lambda a: np.rot90(np.fliplr(a), 3), lambda a: np.rot90(a, 3)),
    ]
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation - 1](np.asarray(upright))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = encode(pictures.encoded(stored, kind, exif=exif), EncodeOptions(resize, 95))
    expected = upright if resize is None else upright.resize((32, 24), Image.Resampling.LANCZOS)
    assert (found.width, found.height) == expected.size
    assert mean_error(found.data, np.asarray(expected).astype(int)) < 6
    if orientation > 1:
        assert not Image.open(io.BytesIO(found.data)).getexif()


def test_damaged_exif_does_not_reject():
    data = pictures.jpeg(pictures.gradient(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20)
    assert encode(data).data == data


def test_resize_shortens_the_short_side_and_never_enlarges():
    photo = pictures.jpeg(pictures.gradient(640, 480, seed=3))
    found = encode(photo, EncodeOptions(resize=100))
    assert (found.width, found.height) == (133, 100)
    reference = pictures.gradient(640, 480, seed=3).resize((133, 100), Image.Resampling.LANCZOS)
    assert mean_error(found.data, np.asarray(reference).astype(int)) < 6
    assert encode(photo, EncodeOptions(resize=480)).data == photo
    assert encode(photo, EncodeOptions(resize=2000)).data == photo


def test_grey_jpeg_stays_grey_when_shrunk():
    found = encode(pictures.jpeg(pictures.gradient(200, 100).convert("L")), EncodeOptions(resize=50))
    assert Image.open(io.BytesIO(found.data)).mode == "L"


def test_metadata_is_left_behind():
    data = pictures.encoded(pictures.gradient(), "PNG", dpi=(300, 300), icc_profile=b"x" * 3000)
    assert b"x" * 100 not in encode(data).data


def test_quality_decides_the_size():
    data = pictures.encoded(pictures.gradient(200, 200, seed=1), "PNG")
    assert len(encode(data, EncodeOptions(quality=50)).data) < len(encode(data, EncodeOptions(quality=95)).data) / 2
