"""CMYK, and colour profiles to sRGB: the right pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from shards import PackOptions, pack
from shards.images.encode import encode
from shards.images.jpeg import colour_profile
from shards.images.options import EncodeOptions
from tests.support import pictures
from tests.support.profiles import (
    DISPLAY_P3,
    SRGB,
    cmyk_profile,
    grey_profile,
    rgb_profile,
    srgb_of_xyz,
    xyz_of_lab,
)

SIZE = (64, 48)
WIDE = rgb_profile(DISPLAY_P3, 2.2)
COLOUR = (180, 110, 60)
CONVERTED = srgb_of_xyz(DISPLAY_P3.T @ (np.array(COLOUR) / 255) ** 2.2)
ERROR = 4  # levels: JPEG at quality 90 and more, and LittleCMS's tables of 8 bits


def pixel(data, srgb=True):
    image = Image.open(io.BytesIO(encode(data, EncodeOptions(srgb=srgb)).data))
    assert image.mode in ("RGB", "L") and "icc_profile" not in image.info
    return np.array(image.getpixel((20, 20)), float)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_wide_profile_is_converted_where_asked(kind):
    data = pictures.encoded(
        Image.new("RGB", SIZE, COLOUR), kind, icc_profile=WIDE, **{"quality": 95} if kind != "PNG" else {}
    )
    assert np.abs(CONVERTED - COLOUR).max() > 2 * ERROR  # else this shows nothing
    assert np.abs(pixel(data) - CONVERTED).max() <= ERROR
    if kind != "JPEG":
        assert np.abs(pixel(data, srgb=False) - COLOUR).max() <= ERROR
    else:  # which keeps its bytes, with the profile
        assert encode(data).data == data


def test_formats_of_packages_are_converted_too():
    heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", SIZE, COLOUR)
    image.info["icc_profile"] = WIDE
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=95)
    assert np.abs(pixel(buffer.getvalue()) - CONVERTED).max() <= ERROR
    assert np.abs(pixel(buffer.getvalue(), srgb=False) - COLOUR).max() <= ERROR


def test_palettes_and_transparency_keep_their_meaning():
    clear = Image.new("RGBA", SIZE, (*COLOUR, 51))
    expected = 0.2 * CONVERTED + 0.8 * 255
    assert np.abs(pixel(pictures.encoded(clear, "PNG", icc_profile=WIDE)) - expected).max() <= ERROR
    palette = Image.new("RGB", SIZE, COLOUR).quantize(2)
    assert np.abs(pixel(pictures.encoded(palette, "PNG", icc_profile=WIDE)) - CONVERTED).max() <= ERROR


def test_a_jpeg_in_srgb_keeps_its_bytes_and_profiles_that_do_not_fit_are_ignored():
    image = pictures.gradient()
    of_pillow = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (of_pillow, b"no profile" * 20, grey_profile(1.0)):
        data = pictures.jpeg(image, icc_profile=profile)
        assert encode(data, EncodeOptions(srgb=True)).data == data
        other = pictures.encoded(image, "PNG", icc_profile=profile)
        assert np.abs(pixel(other) - image.getpixel((20, 20))).max() <= ERROR


def test_a_profile_in_several_segments_is_joined():
    large = rgb_profile(DISPLAY_P3, 2.2) + bytes(150_000)
    large = len(large).to_bytes(4, "big") + large[4:]
    data = pictures.jpeg(Image.new("RGB", SIZE, COLOUR), icc_profile=large)
    assert colour_profile(data) == large and np.abs(pixel(data) - CONVERTED).max() <= ERROR
    first = data.index(b"ICC_PROFILE\0\2")
    cut = data[: first - 4] + data[first - 2 + int.from_bytes(data[first - 2 : first], "big") :]
    assert colour_profile(cut) is None


def test_grey_stays_grey():
    data = pictures.jpeg(Image.new("L", SIZE, 55), icc_profile=grey_profile(1.0))
    found = Image.open(io.BytesIO(encode(data, EncodeOptions(srgb=True)).data))
    expected = srgb_of_xyz(SRGB.T @ np.full(3, 55 / 255))[0]
    assert found.mode == "L" and abs(found.getpixel((20, 20)) - expected) <= ERROR and expected > 120


def lab_of(cyan, magenta, yellow, black):
    if black:
        return (0, 0, 0)
    return (45, 50, 30) if (cyan, magenta, yellow) == (0, 1, 1) else (100 - 25 * (cyan + magenta + yellow), 0, 0)


@pytest.mark.parametrize("marker", [True, False], ids=["with Adobe's marker", "without"])
def test_cmyk_has_the_right_polarity(marker):
    """As browsers read it: 0 is full ink in the file, by Adobe's convention, with its marker and without."""
    inks = {(0, 0, 0, 0): (255, 255, 255), (0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0)}
    of_printer = {(0, 0, 0, 0): (100, 0, 0), (0, 255, 255, 0): (45, 50, 30), (0, 0, 0, 255): (0, 0, 0)}
    for ink, colour in inks.items():
        data = pictures.jpeg(Image.new("CMYK", SIZE, ink), quality=95, icc_profile=cmyk_profile(lab_of))
        if not marker:
            place = data.index(b"\xff\xee\0\x0eAdobe")
            data = data[:place] + data[place + 16 :]
        assert np.abs(pixel(data, srgb=False) - colour).max() <= ERROR
        assert np.abs(pixel(data) - srgb_of_xyz(xyz_of_lab(*of_printer[ink]))).max() <= ERROR


def test_the_flag_decides_the_bytes_and_is_recorded_where_given(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(pictures.jpeg(Image.new("RGB", SIZE, COLOUR), icc_profile=WIDE))
    plain, converted = (
        pack(PackOptions(tmp_path / "photos", tmp_path / name, workers=1, srgb=srgb), progress=False)
        for name, srgb in (("plain", False), ("converted", True))
    )
    assert "srgb" not in plain.options and converted.options["srgb"] is True
    assert plain.digest != converted.digest and plain.plan != converted.plan
