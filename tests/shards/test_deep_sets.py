"""Sets of 16-bit images: equal arrays, exact percentiles, the same files however they were packed, and refusals."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shards
from shards import PackError, PackOptions, ShardSet, ShardSetError, pack
from shards.damage import rows_of_tar
from shards.format.levels import MOST_BYTES, levels_bytes, levels_of_bytes, no_levels, scaling_of
from shards.format.parsing import parse_manifest
from shards.format.scaling import Scaling
from shards.images import deep
from shards.images.resample import shrink_16
from shards.joined import joined
from shards.storage.store import open_store
from tests.support.folders import same_files
from tests.support.pictures import cells, decoded_png_16, encoded, gradient, jpeg, png_16
from tests.support.sets import pack_set
from tests.support.tiffs import GREY, RGB, tiff

pytest.importorskip("imagecodecs")
KEEP = {"keep_16_bit": True, "shard_size": 8}


def write(root: Path, channels: int, count: int = 20, first: int = 0) -> dict[str, np.ndarray]:
    """Images in two class folders, PNGs and TIFFs; returns their pixels by name."""
    made = {}
    for number in range(first, first + count):
        pixels = cells(40 + number, 32, channels, seed=number)
        kind = GREY if channels == 1 else RGB
        data = png_16(pixels) if number % 2 else tiff(pixels, kind, order=">" if number % 4 else "<")
        name = f"class {number % 3 > 0:d}/{number:02d}.{'png' if number % 2 else 'tif'}"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        made[name] = pixels
    return made


def percentiles(pixels: list[np.ndarray], *shares: float) -> list[list[int]]:
    """By NumPy: of all pixels, per channel."""
    channels = 1 if pixels[0].ndim == 2 else 3
    every = np.concatenate([each.reshape(-1, channels) for each in pixels])
    return np.percentile(every, shares, axis=0, method="inverted_cdf").astype(int).tolist()


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "RGB"])
def made(request, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of images, with their pixels."""
    root = tmp_path_factory.mktemp("deep")
    return root, write(root, request.param)


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of grey images, with two that are left out, and the set packed from it; not to be changed."""
    root = tmp_path_factory.mktemp("grey")
    write(root / "src", 1)
    (root / "src" / "class 0" / "8 bits.jpg").write_bytes(jpeg(gradient()))
    (root / "src" / "class 0" / "cut off.png").write_bytes(png_16(cells())[:-50])
    return root / "src", pack_set(root / "src", root / "set", **KEEP)


@pytest.fixture
def changed(grey, tmp_path) -> Path:
    """A copy of that set."""
    return shutil.copytree(grey[1], tmp_path / "set")


def test_images_are_equal_arrays_and_the_percentiles_are_those_of_all_pixels(made, tmp_path, cli):
    root, images = made
    channels = 1 if next(iter(images.values())).ndim == 2 else 3
    out = pack_set(root, tmp_path / "set", **KEEP)
    with ShardSet(out) as shard_set:
        ids = np.arange(len(images))
        names = shard_set.names(ids)
        assert sorted(names) == sorted(images)
        for sample, name in enumerate(names):
            pixels = decoded_png_16(shard_set.check(sample))
            np.testing.assert_array_equal(pixels, images[name])
            assert shard_set.read(sample) == shard_set.check(sample)
            assert shard_set.sizes(ids[sample : sample + 1]).tolist() == [list(pixels.shape[:2])]
        assert [f"class {label}" for label in shard_set.labels(ids)] == [name[:7] for name in names]
        assert (shard_set.channels, shard_set.bits) == (channels, 16)
        low, high = percentiles(list(images.values()), 0.1, 99.9)
        assert shard_set.scaling == Scaling((0.1, 99.9), tuple(low), tuple(high))
        assert max(high) < 4096  # of 12 bits, as the camera has
    line = (out / "shard-000000.idx").read_text().splitlines()[1].split()
    assert line[0] == "png" and line[3].endswith("000000000000.png") and line[4] == "cls"
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert (manifest["schema"], manifest["channels"], manifest["bits"]) == ("fastmoco-shards/2", channels, 16)
    assert manifest["made_by"]["imagecodecs"] and manifest["options"]["keep_16_bit"] is True
    verified = cli("verify", out, "--decode")
    assert verified.stdout == "20 images in 3 shards: all as packed, and every image can be decoded\n"
    told = cli("info", out).stdout
    assert f"16 bits, {'1 channel (all grey)' if channels == 1 else '3 channels'}" in told
    assert f"scaling    {low[0]:,} to {high[0]:,}" in told and "(0.1 % to 99.9 % of all values)" in told
    assert f"to 1 against 16-bit {'grey' if channels == 1 else 'RGB'}" in told


def test_the_files_do_not_depend_on_workers_and_interruptions(grey, changed, tmp_path, monkeypatch):
    src, whole = grey
    pack_set(src, tmp_path / "pool", workers=2, **KEEP)
    assert same_files(whole, tmp_path / "pool")
    for lost in (("manifest.json", "shard-000001.levels"), ("shard-000000.tar", "shard-000002.json")):
        for name in lost:
            (changed / name).unlink()
        pack_set(src, changed, **KEEP)
        assert same_files(whole, changed)
    (changed / "shard-000001.levels").write_bytes(b"damaged")
    with pytest.raises(PackError, match=r"shard-000001\.levels is damaged: it does not hold 4 x 65,536 counts; remove"):
        pack_set(src, changed, **KEEP)
    (changed / "shard-000001.levels").unlink()
    pack_set(src, changed, **KEEP)
    assert same_files(whole, changed)


@pytest.mark.long
def test_ray_packs_the_same_files_on_nodes_with_the_same_decoder(grey, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    from shards.packing.executors._ray import connected

    src, whole = grey
    with connected(2, None):
        pack_set(src, tmp_path / "ray", workers=2, executor="ray", **KEEP)
        assert same_files(whole, tmp_path / "ray")
        wrong = lambda *more: {"imagecodecs": "1" if more else ""}  # noqa: E731
        monkeypatch.setattr("shards.packing.executors._ray.made_by", wrong)
        with pytest.raises(PackError, match=r"the driver \{'imagecodecs': '1'\}: the bytes might differ"):
            pack_set(src, tmp_path / "other", executor="ray", **KEEP)


@pytest.mark.long
def test_a_set_in_an_object_store_is_the_same(grey, s3):
    src, whole = grey
    pack_set(src, s3, workers=2, **KEEP)
    store = open_store(s3)
    assert {name: store.read(name) for name in store.names()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    with ShardSet(whole) as local, ShardSet(s3) as remote:
        assert remote.scaling == local.scaling
        assert [remote.check(sample) for sample in range(20)] == [local.check(sample) for sample in range(20)]


def test_others_are_left_out_by_name(grey):
    lines = [json.loads(line) for line in (grey[1] / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["source"]: line["reason"] for line in lines}
    assert reasons["class 0/8 bits.jpg"].startswith("not 16 bits: JPEG, and only PNG and TIFF are taken")
    assert reasons["class 0/cut off.png"].startswith("truncated: ") and len(reasons) == 2


def test_grey_and_rgb_together_have_three_channels(tmp_path):
    images = {**write(tmp_path / "src" / "a", 1, 5), **write(tmp_path / "src" / "b", 3, 5, first=5)}
    manifest = pack(PackOptions(tmp_path / "src", tmp_path / "set", workers=1, **KEEP), progress=False)
    as_rgb = [np.repeat(each[..., None], 3, -1) if each.ndim == 2 else each for each in images.values()]
    low, high = percentiles(as_rgb, 0.1, 99.9)
    assert manifest.channels == 3 and manifest.scaling == Scaling((0.1, 99.9), tuple(low), tuple(high))


def test_other_percentiles_change_the_manifest_alone(grey, changed, capsys):
    pack(PackOptions(grey[0], changed, workers=1, percentiles=[1, 95.5], **KEEP))
    assert "nothing was left to do" in capsys.readouterr().out
    names = {path.name for path in changed.iterdir() if path.read_bytes() != (grey[1] / path.name).read_bytes()}
    assert names == {"manifest.json"}
    pixels = [decoded_png_16(ShardSet(changed).check(sample)) for sample in range(20)]
    low, high = percentiles(pixels, 1, 95.5)
    assert ShardSet(changed).scaling == Scaling((1, 95.5), tuple(low), tuple(high))


def test_percentiles_are_exact_whatever_the_counts():
    rng = np.random.default_rng(0)
    for size in (1, 2, 999, 1000, 1001):
        values = rng.integers(0, 300, size, np.uint16)
        levels = no_levels()
        levels[0] = np.bincount(values, minlength=65536)
        for shares in ((0, 100), (0.1, 99.9), (10, 10.5), (33.3, 66.7)):
            low, high = percentiles([values[:, None]], *shares)
            expected = (tuple(low), tuple(max(value, low[0] + 1) for value in high))
            found = scaling_of(levels, shares, 1)
            assert (found.low, found.high) == expected, (size, shares)
    levels = no_levels()
    levels[0, 65535] = 999 * 10**15
    assert scaling_of(levels, (0.1, 99.9), 1) == Scaling((0.1, 99.9), (65535,), (65536,))
    levels[0, 3] = 10**15  # 0.1 % of 10 ** 18 pixels, which float64 does not tell from one less
    assert scaling_of(levels, (0.1, 99.9), 1).low == (3,)
    levels[0, 3] -= 1
    assert scaling_of(levels, (0.1, 99.9), 1).low == (65535,)


def test_appended_images_count_and_what_the_set_was_before_keeps_its_range(grey, changed, tmp_path):
    before = ShardSet(changed)
    write(tmp_path / "more", 1, 9, first=50)
    (tmp_path / "more" / "class 0" / "white.png").write_bytes(png_16(np.full((200, 200), 50_000, np.uint16)))
    manifest = pack(PackOptions(tmp_path / "more", changed, workers=1, append=True, **KEEP), progress=False)
    after = ShardSet(changed)
    pixels = [decoded_png_16(after.check(sample)) for sample in range(30)]
    low, high = percentiles(pixels, 0.1, 99.9)
    assert after.scaling == manifest.scaling == Scaling((0.1, 99.9), tuple(low), tuple(high)) and high == [50_000]
    assert ShardSet(changed, before.digest).scaling == before.scaling and after.scaling != before.scaling
    files = {path.name: path.read_bytes() for path in changed.iterdir()}
    for command in ({"src": tmp_path / "more", "append": True}, {"src": grey[0]}):  # nothing is left to do
        pack(PackOptions(out=changed, workers=1, **command, **KEEP), progress=False)
        assert {path.name: path.read_bytes() for path in changed.iterdir()} == files


def test_8_bits_are_not_appended_to_16(grey, folder, packed, changed):
    with pytest.raises(PackError, match="--keep-16-bit was True, now not given; give the flags that it has"):
        pack(PackOptions(folder, changed, append=True), progress=False)
    shutil.copytree(packed, changed.parent / "plain")
    with pytest.raises(PackError, match="--keep-16-bit was not given, now True; give the flags that it has"):
        pack(PackOptions(grey[0], changed.parent / "plain", append=True, **KEEP), progress=False)


def test_damage_is_found_and_named(grey, changed, cli):
    manifest = (changed / "manifest.json").read_text()
    (changed / "manifest.json").write_text(manifest.replace("99.9", "99.0"))
    told = cli("verify", changed)
    assert told.returncode == 1 and told.stdout.startswith("manifest.json: scaling is {'percentiles': (0.1, 99.0),")
    (changed / "manifest.json").write_text(manifest)
    (changed / "shard-000001.levels").write_bytes(levels_bytes(no_levels()))
    assert "shard-000001.levels: differs from what was packed (sha256)" in cli("verify", changed).stdout
    (changed / "shard-000001.levels").unlink()
    assert "shard-000001.levels: cannot read: No such file" in cli("verify", changed, "--decode").stdout
    shutil.copy(grey[1] / "shard-000001.levels", changed)
    with ShardSet(changed) as shard_set:
        place = int(shard_set.rows(np.array([0]))[0]["offset"])
    tar = bytearray((changed / "shard-000000.tar").read_bytes())
    tar[place + 60] ^= 0xFF
    (changed / "shard-000000.tar").write_bytes(tar)
    told = cli("verify", changed).stdout
    assert told.startswith("shard-000000.tar key 000000000000: the image's bytes differ") and "1 problem" in told
    tar[place - 100] ^= 0xFF  # and its header, which is not looked at then
    tar[place : place + 4] = b"XXXX"
    (changed / "shard-000000.tar").write_bytes(tar)
    with ShardSet(changed) as shard_set, pytest.raises(Exception, match="are not a complete PNG: the tar is damaged"):
        shard_set.read(0)


def test_rows_are_rebuilt_from_the_tar(grey, changed, cli):
    with open(grey[1] / "shard-000000.tar", "rb") as file:
        np.testing.assert_array_equal(rows_of_tar(file), np.load(grey[1] / "shard-000000.npy"))
    rows = np.load(changed / "shard-000000.npy")
    rows["width"][2] += 1
    np.save(changed / "shard-000000.npy", rows)
    assert "shard-000000.npy key 000000000002: row is" in cli("verify", changed).stdout


@pytest.mark.parametrize("data", [b"", b"BZh9", levels_bytes(no_levels())[:-9], levels_bytes(no_levels() - 1)])
def test_damaged_counts_are_refused(data):
    with pytest.raises(ValueError, match=r"x\.levels is damaged: it (does not hold|holds negative)"):
        levels_of_bytes(data, "x.levels")
    assert len(levels_bytes(np.random.default_rng(0).integers(0, 2**62, (4, 65536)))) < MOST_BYTES


def test_what_a_manifest_says_of_its_images_is_held_against_its_records(grey, folder, packed):
    def refused(path: Path, change, cause: str) -> None:
        values = json.loads((path / "manifest.json").read_bytes())
        change(values)
        with pytest.raises(ShardSetError, match=rf"/set/manifest\.json is damaged \(\w+: {cause}"):
            parse_manifest(json.dumps(values).encode(), "/set/manifest.json")

    deep_set = grey[1]
    refused(deep_set, lambda v: v.update(channels=3), "channels is 3, and 1 by the records")
    refused(deep_set, lambda v: v.update(bits=8), "bits is 8, and 16 by the records")
    refused(deep_set, lambda v: v.update(schema="fastmoco-shards/1"), "images of 16 bits are not of the schema")
    refused(deep_set, lambda v: v.pop("scaling"), "scaling is missing, and the images have 16 bits")
    refused(deep_set, lambda v: v["records"][1].pop("levels_sha256"), "some shards have images of 8 bits and some of")
    refused(deep_set, lambda v: v["records"][1].update(channels=2), "channels is 2, and reduced 0")
    refused(deep_set, lambda v: v["records"][1].update(levels_sha256="ab"), "a SHA-256 of a record is not one")
    for wrong, cause in (
        ({"low": [5], "high": [5]}, "scaling is from 5 to 5"), ({"low": [5, 5, 5]}, "scaling is not of 1 channels"),
        ({"low": [-1]}, "scaling is from -1 to"), ({"high": [70000]}, "scaling is from .* to 70000"),
        ({"percentiles": [5, 5]}, "the percentile 5 is not below 5"), ({"percentiles": [5]}, "scaling is not of"),
        ({"percentiles": [0, "x"]}, "the percentile x is outside"), ({"low": 3}, "'int' object is not iterable"),
    ):  # fmt: skip
        refused(deep_set, lambda v, wrong=wrong: v["scaling"].update(wrong), cause)
    refused(packed, lambda v: v.update(scaling={}), "scaling is given, and the images have 8 bits")

    values = json.loads((packed / "manifest.json").read_bytes())
    assert (values.pop("channels"), values.pop("bits")) == (3, 8)  # which manifests of earlier versions do not have
    old = parse_manifest(json.dumps(values).encode(), "/set")
    assert (old.channels, old.bits, old.scaling) == (3, 8, None) and old.digest == ShardSet(packed).digest


def test_sets_of_8_bits_say_whether_all_images_are_grey(folder, tmp_path, cli):
    (tmp_path / "src").mkdir()
    for number in range(6):
        grey = gradient(seed=number).convert("L")
        (tmp_path / "src" / f"{number}.jpg").write_bytes(jpeg(grey) if number % 2 else encoded(grey, "PNG"))
    made = pack_set(tmp_path / "src", tmp_path / "grey", shard_size=4)
    with ShardSet(made) as shard_set:
        assert (shard_set.channels, shard_set.bits, shard_set.scaling) == (1, 8, None)
        assert shard_set.read(0)[:2] == b"\xff\xd8"
    assert json.loads((made / "manifest.json").read_bytes())["channels"] == 1
    assert "pixels     8 bits, 1 channel (all grey)" in cli("info", made).stdout
    (tmp_path / "tars").mkdir()
    for name in ("shard-000000.tar", "shard-000001.tar"):
        shutil.copy(made / name, tmp_path / "tars")
    cli("index", tmp_path / "tars")
    assert ShardSet(tmp_path / "tars").channels == 1
    (tmp_path / "src" / "colour.jpg").write_bytes(jpeg(gradient()))
    assert ShardSet(pack_set(tmp_path / "src", tmp_path / "mixed", shard_size=4)).channels == 3


def test_packing_with_8_bits_says_once_how_many_images_had_16(grey, tmp_path, capsys, cli):
    made = pack(PackOptions(grey[0], tmp_path / "set", workers=2, shard_size=8))
    said = capsys.readouterr().out
    assert said.count("20 images of 16 bits were reduced to 8; --keep-16-bit keeps 16\n") == 1
    assert [record.reduced for record in made.records] == [8, 8, 4] or sum(r.reduced for r in made.records) == 20
    assert "reduced    20 images of 16 bits to 8" in cli("info", tmp_path / "set").stdout
    pack(PackOptions(grey[0], tmp_path / "other", workers=1, exclude=["*.png", "*.tif"]))
    assert "16 bits" not in capsys.readouterr().out


def test_images_in_memory_are_counted_as_files_are(grey, tmp_path):
    deep, floats = cells(), Image.fromarray(np.linspace(0, 300, 48 * 64, dtype=np.float32).reshape(48, 64))
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "TIFF")
    of_16_bits = [deep, deep.astype(">u2"), torch.from_numpy(deep), Image.fromarray(deep), buffer.getvalue()]
    of_8_bits = [np.uint8(deep // 257), Image.fromarray(deep // 257).convert("L"), Image.fromarray(np.int32(deep))]
    made = shards.pack([*of_16_bits, *of_8_bits, floats], tmp_path / "set", progress=False, workers=1)
    counts = [(record.reduced, record.own_range) for record in made.records]
    assert [sum(each) for each in zip(*counts, strict=True)] == [5, 1]


def test_packing_says_how_many_images_of_floats_it_scaled_by_their_own_range(tmp_path, capsys, cli):
    """Two floats and integers of 32 bits, a PFM, and an image of 8 bits."""
    (tmp_path / "src").mkdir()
    ramp = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    for name, values in {
        "a": ramp,
        "b": 300 * ramp,
        "c": np.int32(100_000 * ramp),
        "d": np.uint8(np.rint(255 * ramp)),
    }.items():
        Image.fromarray(values).save(tmp_path / "src" / f"{name}.tif")
    (tmp_path / "src" / "e.pfm").write_bytes(b"Pf\n64 48\n-1.0\n" + ramp[::-1].tobytes())
    made = pack(PackOptions(tmp_path / "src", tmp_path / "set", workers=1))
    assert (made.samples, sum(record.own_range for record in made.records)) == (5, 4)
    assert "4 images of floats or 32 bits became 8 bits by the range of each\n" in capsys.readouterr().out
    assert "ranges     4 images of floats or 32 bits, scaled by" in cli("info", tmp_path / "set").stdout
    with ShardSet(tmp_path / "set") as packed:
        images = [np.asarray(Image.open(io.BytesIO(packed.read(sample)))) for sample in range(5)]
        found = dict(zip(packed.names(np.arange(5)), images, strict=True))
    assert [int(found[f"{name}.tif"].max()) for name in "abcd"] == [255, 1, 255, 255]
    np.testing.assert_array_equal(found["e.pfm"], found["a.tif"])


def test_sets_of_8_and_of_16_bits_are_not_joined(grey, packed):
    with ShardSet(grey[1]) as deep_set, ShardSet(packed) as plain:
        mixed = rf"{packed} has images of 8 bits and {grey[1]} of 16, which are scaled in different ways; pack both"
        with pytest.raises(ShardSetError, match=mixed):
            joined([plain, deep_set])
        assert joined([plain, plain][:1]).bits == 8


def _shapes(seed: int) -> np.ndarray:
    """uint16 [180, 240]: smooth shapes of few values, as in dark images, which 8 bits of the full range would lose."""
    chance, size = np.random.default_rng(seed), (240, 180)
    layers = [
        np.asarray(Image.fromarray(chance.integers(0, 256, (n, n), np.uint8)).resize(size, Image.Resampling.BICUBIC))
        for n in (3, 6, 12, 40)
    ]
    return (200 + 3 * np.average(layers, axis=0, weights=[4, 3, 2, 1])).astype(np.uint16)


def test_filters_see_the_values_that_images_have(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    first, second, third = (_shapes(seed) for seed in range(3))
    images = {"a.png": first, "b.png": second, "blank.png": np.full((90, 90), 300, np.uint16)}
    for name, pixels in images.items():
        (src / name).write_bytes(png_16(pixels))
    (src / "copy.tif").write_bytes(tiff(shrink_16(first, (160, 120)) * 3, GREY))
    (src / "a again.png").write_bytes(png_16(first))
    filters = {"keep_16_bit": True, "drop_blank": True, "drop_duplicates": "near"}
    options = PackOptions(src, tmp_path / "set", workers=1, **filters)
    made = pack(options, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "set" / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["source"]: line["reason"] for line in lines}
    assert reasons["blank.png"] == "blank: a single colour, grey 300"
    assert len(reasons) == 3 and "b.png" not in reasons and made.samples == 2
    assert sorted(reason.split(":")[0] for reason in reasons.values()) == ["blank", "duplicate", "near duplicate"]
    (src / "new.png").write_bytes(png_16(third))  # all others are in the other set, or copies
    rest = replace(options, out=tmp_path / "rest", not_in=(tmp_path / "set",))
    with ShardSet(tmp_path / "rest" if pack(rest, progress=False).samples == 1 else "") as shard_set:
        assert shard_set.names(np.array([0])) == ["new.png"]


def test_items_of_python_keep_16_bits(tmp_path):
    torch = pytest.importorskip("torch")
    grey, rgb = cells(), cells(channels=3)
    files = [png_16(grey), tiff(rgb, RGB)]
    memory = [grey, grey.astype(">u2"), grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None]]
    memory += [rgb, torch.from_numpy(rgb).permute(2, 0, 1)]
    others = [gradient(), np.zeros((48, 64), np.uint8), torch.zeros(1, 48, 64), jpeg(gradient())]
    options = {"keep_16_bit": True, "shuffle": False, "progress": False, "percentiles": [0, 100], "shard_size": 6}
    made = pack(files + memory + others, tmp_path / "set", **options)
    assert (made.samples, made.quarantined, made.channels, made.bits) == (9, 4, 3, 16)
    with ShardSet(tmp_path / "set") as shard_set:
        found = [decoded_png_16(shard_set.check(sample)) for sample in range(9)]
        for pixels, expected in zip(found, [grey, rgb, *[grey] * 5, rgb, rgb], strict=True):
            np.testing.assert_array_equal(pixels, expected)
        low, high = percentiles(
            [np.repeat(each[..., None], 3, -1) if each.ndim == 2 else each for each in found], 0, 100
        )
        assert shard_set.scaling == Scaling((0, 100), tuple(low), tuple(high))
    lines = [json.loads(line)["reason"] for line in (tmp_path / "set/quarantine.jsonl").read_text().splitlines()]
    assert [line.partition(";")[0] for line in lines] == [
        "not 16 bits: an image of mode RGB", "not 16 bits: values of the type uint8",
        "not 16 bits: values of the type float32", "not 16 bits: JPEG, and only PNG and TIFF are taken",
    ]  # fmt: skip
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    pack(files + memory + others, tmp_path / "set", **options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    with pytest.raises(PackError, match=r"item 0: \[48, 64, 2\] is no shape of a 16-bit image; give \[height, width"):
        pack([np.zeros((48, 64, 2), np.uint16)], tmp_path / "other", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_16_bit": True, "srgb": True}, "--srgb converts 8 bits, and --keep-16-bit packs values as they are"),
        ({"percentiles": [1, 99]}, "--percentiles 1 99 are of 16-bit images: give --keep-16-bit, or leave them out"),
        ({"keep_16_bit": True, "percentiles": [99, 1]}, "--percentiles 99 1: the percentile 99 is not below 1; give"),
        ({"keep_16_bit": True, "percentiles": [-1, 1]}, "--percentiles -1 1: the percentile -1 is outside 0..100"),
        ({"keep_16_bit": True, "percentiles": [5]}, "--percentiles 5: .*; give two, such as 0.1 99.9"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(PackError, match=message):
        PackOptions("src", "out", **options).validate()


def test_a_package_that_is_missing_is_named_before_anything_is_read(grey, tmp_path, monkeypatch):
    monkeypatch.setattr(deep, "DECODER", "no_such_package")
    with pytest.raises(PackError, match=r"--keep-16-bit needs imagecodecs: pip install 'fastmoco\[deep\]'"):
        pack_set(grey[0], tmp_path / "set", **KEEP)
    assert not (tmp_path / "set").exists()
    # on a worker it is no image's fault: the shard fails
    monkeypatch.setattr(deep, "require", lambda: None)
    with pytest.raises(PackError, match=r"3 of 3 shards failed \(shard-000000: ModuleNotFoundError at .*no_such_pack"):
        pack_set(grey[0], tmp_path / "set", **KEEP)


@pytest.mark.parametrize("keep", [False, True])
def test_packing_says_of_how_many_tiffs_the_first_page_was_taken(tmp_path, capsys, cli, keep):
    """Pages, a smaller version that is none, and a file of one page."""
    (tmp_path / "src").mkdir()
    pages = [Image.fromarray(cells(seed=number)) for number in range(3)]
    pages[0].save(tmp_path / "src" / "pages.tif", save_all=True, append_images=pages[1:])
    pages[1].save(tmp_path / "src" / "one.tif")
    small = Image.fromarray(cells(32, 24))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    pages[2].save(tmp_path / "src" / "thumbnail.tif", save_all=True, append_images=[small])
    made = pack(PackOptions(tmp_path / "src", tmp_path / "set", workers=1, keep_16_bit=keep))
    assert sum(record.several for record in made.records) == 1
    assert "of 1 TIFF with several pages the first page was packed, and no other\n" in capsys.readouterr().out
    assert "pages      1 TIFF with several pages, of which the first is packed" in cli("info", tmp_path / "set").stdout
