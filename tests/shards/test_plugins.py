"""HEIC, JPEG XL, AVIF and camera raws: the right pixels, upright, and limits; and what happens without the packages."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from shards import PackOptions, ShardSet, pack
from shards._software import made_by, version_of
from shards.format.manifest import ShardRecord
from shards.images import jpeg_xl, plugins
from shards.images.encode import Rejected, encode
from shards.images.options import EncodeOptions
from tests.support import pictures
from tests.support.raws import dng

LEFT, RIGHT = (200, 30, 60), (20, 160, 220)
SIZE = (64, 48)
ERROR = 6  # levels: each codec at the qualities used here, and then the JPEG


def halves(mode="RGB", size=SIZE):
    image = Image.new("RGB", size, LEFT)
    image.paste(RIGHT, (size[0] // 2, 0, *size))
    return image.convert(mode)


def turned(number):
    exif = Image.Exif()
    exif[0x112] = number
    return exif.tobytes()


def heic(image, **options):
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def jxl(image, **options):
    pytest.importorskip("pillow_jxl")
    return pictures.encoded(image, "JXL", **{"quality": 95, **options})


def avif(image, **options):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    return pictures.encoded(image, "AVIF", **{"quality": 95, **options})


def pixels(data, options=EncodeOptions()):  # noqa: B008 (immutable)
    found = encode(data, options)
    image = Image.open(io.BytesIO(found.data))
    assert (found.width, found.height) == image.size
    return np.asarray(image, int), found.decoder


def assert_halves(data, decoder):
    found, by = pixels(data)
    assert by == decoder and found.shape == (*SIZE[::-1], 3)
    for side, colour in ((found[8:-8, 8:24], LEFT), (found[8:-8, 40:-8], RIGHT)):
        assert np.abs(side - colour).max() <= ERROR


@pytest.mark.parametrize(
    ("make", "decoder"), [(heic, "pillow-heif"), (jxl, "pillow-jxl-plugin"), (avif, "")], ids=["heic", "jxl", "avif"]
)
def test_pixels_size_and_transparency(make, decoder):
    assert_halves(make(halves()), decoder)
    grey, _ = pixels(make(Image.new("L", SIZE, 120)))
    assert np.abs(grey - 120).max() <= ERROR
    clear = halves("RGBA")
    clear.putalpha(Image.new("L", SIZE, 51))  # a fifth, blended with white
    found, _ = pixels(make(clear))
    assert np.abs(found[20, 10] - (0.2 * np.array(LEFT) + 0.8 * 255)).max() <= ERROR
    small, _ = pixels(make(halves(size=(128, 96))), EncodeOptions(resize=24))
    assert small.shape == (24, 32, 3)
    for limit in ({"max_pixels": 1000}, {"max_side": 50}):
        with pytest.raises(Rejected, match=r"^too large: (64 x 48|3,072) pixels, over "):
            encode(make(halves()), EncodeOptions(**limit))
    with pytest.raises(Rejected, match=r"^(damaged|truncated|unsupported): "):
        encode(make(halves())[:-200])


def test_an_orientation_counts_once():
    """HEIC has one of its own, of which the EXIF data are a copy; in a JPEG XL the EXIF data do not count."""
    upright = np.asarray(halves().transpose(Image.Transpose.ROTATE_270), int)
    for data in (heic(halves(), exif=turned(6)), avif(halves(), exif=turned(6))):
        found, _ = pixels(data)
        assert found.shape == upright.shape and np.abs(found - upright)[4:28].max() <= ERROR
    assert_halves(jxl(halves(), exif=turned(6)), "pillow-jxl-plugin")


def test_the_primary_picture_of_several_is_used(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    several = heif.HeifFile()
    for image in (Image.new("RGB", SIZE), halves(), Image.new("RGB", SIZE)):
        several.add_from_pillow(image)
    several.save(tmp_path / "a.heic", quality=95, primary_index=1)
    assert_halves((tmp_path / "a.heic").read_bytes(), "pillow-heif")


def test_ten_bits_are_scaled_to_eight(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    deep = (np.asarray(halves()).astype("<u2") * 257).tobytes()
    heif.encode("RGB;16", SIZE, deep, tmp_path / "deep.heic", quality=95)
    data = (tmp_path / "deep.heic").read_bytes()
    assert heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False).info["bit_depth"] == 10
    assert_halves(data, "pillow-heif")


def test_a_jpeg_xl_of_a_jpeg_gives_the_jpeg_back(tmp_path):
    before = pictures.jpeg(pictures.gradient())
    (tmp_path / "a.jpg").write_bytes(before)
    data = jxl(Image.open(tmp_path / "a.jpg"), lossless_jpeg=True)
    found = encode(data)
    assert found.data == before and found.decoder == "pillow-jxl-plugin"
    exif = pictures.jpeg(halves(), exif=turned(6))  # which no decoder has applied
    (tmp_path / "b.jpg").write_bytes(exif)
    assert encode(jxl(Image.open(tmp_path / "b.jpg"), lossless_jpeg=True)).width == SIZE[1]


@pytest.mark.parametrize("size", [(8, 8), (64, 48), (63, 48), (300, 7), (512, 512), (123, 249), (10_000, 16)])
def test_the_size_of_a_jpeg_xl_is_read_without_decoding(size):
    for options in ({}, {"use_container": True}):
        assert jpeg_xl.size(jxl(Image.new("RGB", size), effort=1, **options)) == size
    assert jpeg_xl.size(b"\xff\x0a" + bytes(3)) is None


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_camera_raw_is_developed(orientation):
    """With the camera's white balance; the curve is that of BT.709, which dcraw and LibRaw use."""
    pytest.importorskip("rawpy")
    linear = np.ones((96, 128, 3))
    linear[:, :64] = (0.5, 0.18, 0.05)
    found, decoder = pixels(dng(linear, orientation))
    assert decoder == "rawpy" and found.shape == ((96, 128, 3) if orientation == 1 else (128, 96, 3))
    expected = 255 * (1.099 * np.array([0.5, 0.18, 0.05]) ** 0.45 - 0.099)
    assert np.abs(found[20, 20] - expected).max() <= ERROR
    assert np.abs(found[-20, -20] - 255).max() <= ERROR
    with pytest.raises(Rejected, match=r"^too large: 128 x 96 pixels, over "):
        encode(dng(linear, orientation), EncodeOptions(max_pixels=5000))
    with pytest.raises(Rejected, match=r"^(damaged|truncated|unsupported): .*DNG"):
        encode(dng(linear, orientation)[:900])


def test_a_set_names_the_packages_that_decoded(tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    for name, data in (("a.heic", heic(halves())), ("b.jxl", jxl(halves())), ("c.jpg", pictures.jpeg(halves()))):
        (source / name).write_bytes(data)
    for shard_size in (1, 3):
        manifest = pack(
            PackOptions(source, tmp_path / f"set{shard_size}", workers=1, shard_size=shard_size), progress=False
        )
        by = {name: version_of(name) for name in ("pillow-heif", "pillow-jxl-plugin")}
        assert {name: version for name, version in manifest.made_by.items() if name not in made_by()} == by
    texts = {f"{name} {version}" for name, version in by.items()}
    with ShardSet(tmp_path / "set1") as packed:
        assert {record.decoders for record in packed.manifest.records} == {*texts, ""}
        assert all("decoders" not in record.to_json() or record.decoders for record in packed.manifest.records)
    (record,) = manifest.records
    assert record.decoders == ", ".join(sorted(texts)) and ShardRecord.from_json(record.to_json()) == record


def test_without_the_packages_images_are_left_out_with_the_remedy(tmp_path, monkeypatch, capfd):
    source = tmp_path / "photos"
    source.mkdir()
    files = {
        "a.heic": heic(halves()),
        "b.heic": heic(halves()),
        "c.jxl": jxl(halves()),
        "d.dng": dng(np.ones((32, 32, 3))),
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    (source / "e.jpg").write_bytes(pictures.jpeg(halves()))
    for module in ("pillow_heif", "pillow_jxl", "rawpy"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    plugins._module.cache_clear()
    try:
        manifest = pack(PackOptions(source, tmp_path / "set", workers=1))
    finally:
        plugins._module.cache_clear()
    assert manifest.samples == 1 and set(manifest.made_by) == {"fastmoco", "pillow", "simplejpeg"}
    assert "left out 4 (4 needs pip install 'fastmoco[formats]')" in capfd.readouterr().out
    lines = (tmp_path / "set/quarantine.jsonl").read_text()
    assert lines.count("needs pip install 'fastmoco[formats]': HEIC") == 2
    for kind in ("JPEG XL", "camera raw (DNG)"):
        assert f"needs pip install 'fastmoco[formats]': {kind}" in lines
