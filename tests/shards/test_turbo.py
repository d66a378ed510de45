"""JPEGs decoded without Pillow: the same bytes and the same refusals as with it."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from shards.images import encode as encoding
from shards.images.encode import Rejected, encode
from shards.images.jpeg import read_header
from shards.images.memory import Memory
from shards.images.options import EncodeOptions
from shards.images.turbo import decoded
from tests.fuzz.faults import damaged
from tests.fuzz.running import kind_of
from tests.support import pictures

SIDES = [(64, 48), (67, 45), (33, 121), (250, 130)]
SHORT_SIDES = [8, 12, 15, 31, 44]  # of which some are reached by a half, a quarter and an eighth


def jpegs(mode: str) -> list[bytes]:
    found = []
    for (width, height), progressive, sampling in itertools.product(SIDES, (False, True), ("4:4:4", "4:2:2", "4:2:0")):
        options = {} if mode == "L" else {"subsampling": sampling}
        image = pictures.gradient(width, height, seed=1).convert(mode)
        found.append(pictures.jpeg(image, progressive=progressive, **options))
    return found


def outcome(data: bytes, options: EncodeOptions) -> bytes | str:
    try:
        return encode(data, options).data
    except Rejected as rejected:
        return str(rejected)


@pytest.fixture
def by_both(monkeypatch):
    """The outcomes of a file with and without this decoder, and how often it decoded."""
    count = 0

    def counted(*arguments):
        nonlocal count
        found = decoded(*arguments)
        count += found is not None
        return found

    def run(data: bytes, options: EncodeOptions) -> tuple[bytes | str, bytes | str]:
        monkeypatch.setattr(encoding, "decoded", counted)
        ours = outcome(data, options)
        monkeypatch.setattr(encoding, "decoded", lambda *_: None)
        return ours, outcome(data, options)

    run.count = lambda: count
    return run


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_equal_those_by_pillow(by_both, mode):
    files = jpegs(mode)
    for data, short in itertools.product(files, SHORT_SIDES):
        ours, pillows = by_both(data, EncodeOptions(resize=short))
        assert isinstance(ours, bytes)
        assert ours == pillows
    smaller = sum(min(size) > short for size in SIDES for short in SHORT_SIDES)
    assert by_both.count() == smaller * len(files) // len(SIDES)


def test_colours_without_ycc_and_turned_images_too(by_both):
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({"keep_rgb": True}, {"exif": exif}, {"restart_marker_blocks": 2}, {"optimize": True}):
        ours, pillows = by_both(pictures.jpeg(pictures.gradient(130, 90, seed=2), **options), EncodeOptions(resize=40))
        assert isinstance(ours, bytes)
        assert ours == pillows
    assert by_both.count() == 4


def test_cmyk_is_left_to_pillow(by_both):
    for data in jpegs("CMYK"):
        ours, pillows = by_both(data, EncodeOptions(resize=20))
        assert isinstance(ours, bytes)
        assert ours == pillows
    assert by_both.count() == 0


def test_damaged_files_have_the_same_outcome(by_both):
    files, refused = kind_of("jpeg"), 0
    for number in range(400):
        ours, pillows = by_both(damaged(files, 3, number), EncodeOptions(resize=16, drop_blank=number % 2 == 0))
        assert ours == pillows, number
        refused += isinstance(ours, str)
    assert refused > 50
    assert by_both.count() > 50


@pytest.mark.parametrize("progressive", [False, True])
def test_missing_data_is_refused_as_by_pillow(by_both, progressive):
    data = pictures.jpeg(pictures.gradient(120, 100, seed=1), progressive=progressive)
    for cut in range(20, len(data) - 700, 97):
        ours, pillows = by_both(data[: -2 - cut] + data[-2:], EncodeOptions(resize=40))
        assert ours == pillows
    assert by_both.count() == 0  # whatever Pillow forgives, it decodes itself


def test_extraneous_bytes_are_left_to_pillow(by_both):
    data = pictures.jpeg(pictures.gradient(120, 100, seed=1))
    ours, pillows = by_both(data[:-2] + bytes(40) + data[-2:], EncodeOptions(resize=40))
    assert isinstance(ours, bytes)
    assert ours == pillows
    assert by_both.count() == 0


def test_pixels_of_one_thread_are_not_another_ones():
    data = pictures.jpeg(pictures.gradient(120, 100, seed=1))
    header = read_header(data)
    assert header is not None
    pixels = decoded(data, header, (120, 100))
    assert pixels is not None
    before = pixels.copy()
    other = threading.Thread(target=decoded, args=(pictures.jpeg(Image.new("RGB", (120, 100))), header, (120, 100)))
    other.start()
    other.join()
    np.testing.assert_array_equal(pixels, before)


def test_memory_is_used_again_unless_it_is_large():
    memory = Memory()
    first = memory.room("a", 1000)
    assert np.shares_memory(first, memory.room("a", 500, np.int16))
    assert not np.shares_memory(first, memory.room("b", 1000))
    large = memory.room("a", 1 << 27)
    assert not np.shares_memory(large, memory.room("a", 1000))
    assert np.shares_memory(first, memory.room("a", 1000))
