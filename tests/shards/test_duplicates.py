"""Duplicates, near copies and images of other sets are left out: which, why, and the same bytes however it was done."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import PackError, PackOptions, ShardSet, pack
from shards.images.options import EncodeOptions
from shards.packing import executors
from shards.packing.duplicates import comparing
from shards.packing.duplicates.fingerprint import fingerprint, perceptual
from shards.packing.duplicates.matching import near_copies
from shards.packing.duplicates.others import planned
from shards.packing.duplicates.scan import Scan
from shards.packing.output import held
from shards.packing.plan import WORK, keep_plan
from shards.packing.progress import Display
from shards.packing.sources import open_source
from shards.packing.task import perform
from shards.storage.store import open_store
from tests.support.folders import same_files
from tests.support.profiles import DISPLAY_P3, rgb_profile

NEAR = {"drop_duplicates": "near", "shard_size": 7}


def scene(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """Smooth shapes at several scales with some grain, as in a photograph."""
    chance = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(chance.integers(0, 256, (n, n, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC))
        for n in (3, 6, 12, 40)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=[4, 3, 2, 1]).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


def cropped(image: Image.Image) -> Image.Image:
    """Without 5 % of the width and height, most of them at the left and the top."""
    width, height = image.size
    return image.crop((9, 6, 9 + round(0.95 * width), 6 + round(0.95 * height)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Sixteen scenes in two classes, and copies of some of them."""
    root = tmp_path_factory.mktemp("copies") / "photos"
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
    for number in range(16):
        (root / "cats" / f"{number:02d}.jpg").write_bytes(jpeg(scene(number)))
    shutil.copy(root / "cats/00.jpg", root / "cats/00 copy.jpg")
    shutil.copy(root / "cats/01.jpg", root / "dogs/of-cat-1.jpg")
    (root / "cats/02-trailer.jpg").write_bytes((root / "cats/02.jpg").read_bytes() + b"what a phone appends")
    (root / "cats/03-small.jpg").write_bytes(jpeg(scene(3).resize((120, 90))))
    (root / "dogs/04-bad.jpg").write_bytes(jpeg(scene(4), 20))
    (root / "cats/05-cropped.jpg").write_bytes(jpeg(cropped(scene(5))))
    scene(6).save(root / "cats/06.png")
    scene(7).resize((480, 360), Image.Resampling.BICUBIC).save(root / "cats/07-large.webp", quality=90)
    (root / "cats/08-broken.jpg").write_bytes(jpeg(scene(8).resize((480, 360)))[:-5000])
    return root


@pytest.fixture(scope="module")
def compared(photos, tmp_path_factory) -> Path:
    """The set of these photographs without near copies."""
    out = tmp_path_factory.mktemp("compared") / "set"
    pack(photos, out, workers=1, progress=False, **NEAR)
    return out


def left_out(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return {line["source"]: line["reason"] for line in lines}


def near(reasons: dict[str, str], name: str) -> tuple[int, str]:
    """Distance and the image that stays."""
    cause, _, text = reasons[name].partition(": ")
    assert cause == "near duplicate"
    bits, _, rest = text.partition(" of 256 bits from ")
    return int(bits), rest


EXACT = {
    "cats/00 copy.jpg": "duplicate: the same content as cats/00.jpg",
    "dogs/of-cat-1.jpg": "duplicate: the same content as cats/01.jpg, which has label cats, not dogs",
    "cats/02-trailer.jpg": "duplicate: the same content as cats/02.jpg",
}


def test_of_equal_files_the_one_with_the_shortest_name_stays(photos, tmp_path, capsys):
    pack(photos, tmp_path / "set", workers=1, drop_duplicates="exact")
    reasons = left_out(tmp_path / "set")
    assert reasons.pop("cats/08-broken.jpg").startswith("truncated: ")
    assert reasons == EXACT
    printed = capsys.readouterr().out
    assert "reading 25 images to compare them\n" in printed
    assert "found 3 duplicate\n" in printed
    assert "warning: 1 copy with another label: dogs/of-cat-1.jpg (dogs) and cats/01.jpg (cats)\n" in printed
    assert "left out 4 (3 duplicate, 1 truncated); see " in printed


def test_of_near_copies_the_largest_stays_unless_it_is_broken(compared):
    reasons = left_out(compared)
    assert {name: reasons.pop(name) for name in EXACT} == EXACT
    assert reasons.pop("cats/08-broken.jpg").startswith("truncated: ")
    assert near(reasons, "cats/03-small.jpg")[1] == "cats/03.jpg"
    bits, stays = near(reasons, "dogs/04-bad.jpg")
    assert stays == "cats/04.jpg, which has label cats, not dogs" and bits <= 16
    assert near(reasons, "cats/05-cropped.jpg")[1] == "cats/05.jpg"
    assert near(reasons, "cats/06.jpg")[1] == "cats/06.png"  # the larger file
    assert near(reasons, "cats/07.jpg")[1] == "cats/07-large.webp"
    assert len(reasons) == 5
    with ShardSet(compared) as shard_set:
        assert len(shard_set) == 16
        assert {name[5:7] for name in shard_set.names(np.arange(16))} == {f"{number:02d}" for number in range(16)}


def test_a_smaller_distance_keeps_cropped_copies(photos, tmp_path):
    pack(photos, tmp_path / "set", workers=1, progress=False, near_distance=4, **NEAR)
    assert "cats/05-cropped.jpg" not in left_out(tmp_path / "set")
    assert near(left_out(tmp_path / "set"), "cats/03-small.jpg")[0] <= 4


def test_any_number_of_workers_packs_the_same_bytes(photos, compared, tmp_path):
    pack(photos, tmp_path / "set", workers=2, progress=False, **NEAR)
    assert same_files(compared, tmp_path / "set")


@pytest.mark.parametrize("scanned", [2, "all"])
def test_what_a_killed_packing_has_compared_is_not_read_again(photos, compared, tmp_path, capsys, scanned):
    """Left behind are the plan and the fingerprints of some shards, or also what they led to."""
    options = PackOptions(photos, tmp_path / "set", workers=1, **NEAR)
    store, making = open_store(options.out), tmp_path / "set" / WORK / "making"
    with held(store) as alive, executors.opened(1) as run:
        source = open_source(options)
        plan, others = planned(options, source, making)
        keep_plan(store, making, plan)
        if scanned == "all":
            comparing.compare(options, store, plan, source, WORK, others, run, Display(False), alive)
        else:
            for shard in range(scanned):
                list(perform(Scan(str(photos), store.url, shard, plan.identity, options.encoding)))
    pack(options)
    printed = capsys.readouterr().out
    assert ("to compare them" in printed) == (scanned != "all")
    assert scanned == "all" or "reading 25 images to compare them, 14 are read already\n" in printed
    assert same_files(compared, tmp_path / "set")
    pack(options)  # a set that is there is not compared again
    assert "to compare them" not in capsys.readouterr().out
    shutil.copytree(tmp_path / "set", tmp_path / "repaired")
    (tmp_path / "repaired" / "shard-000001.tar").unlink()
    pack(replace(options, out=tmp_path / "repaired"), progress=False)
    assert same_files(compared, tmp_path / "repaired")


@pytest.fixture(scope="module")
def val(tmp_path_factory) -> Path:
    """A packed set that shares three scenes with the photographs: one as it is, one resized, one as PNG."""
    root = tmp_path_factory.mktemp("val")
    (root / "images").mkdir()
    (root / "images/a.jpg").write_bytes(jpeg(scene(10)))
    (root / "images/b.jpg").write_bytes(jpeg(scene(11).resize((160, 120))))
    scene(12).save(root / "images/c.png")
    (root / "images/d.jpg").write_bytes(jpeg(scene(100)))
    pack(root / "images", root / "set", progress=False)
    return root


def test_what_another_set_holds_is_left_out_and_nothing_else(photos, val, tmp_path):
    other, out = val / "set", tmp_path / "set"
    pack(photos, out, not_in=other, workers=1, progress=False)
    reasons = left_out(out)
    assert reasons.pop("cats/08-broken.jpg").startswith("truncated: ")
    tar = f"{other}/shard-000000.tar"
    assert reasons.pop("cats/10.jpg") == f"in another set: the same content as {tar}/a.jpg"
    assert {name: reason.partition(" bits from ")[2] for name, reason in reasons.items()} == {
        "cats/11.jpg": f"{tar}/b.jpg",
        "cats/12.jpg": f"{tar}/c.png",
    }
    with pytest.raises(PackError, match=r"holds another set: .*--not-in was .*, now not given"):
        pack(photos, out, progress=False)


@pytest.mark.parametrize("packed", [False, True])
def test_a_copy_in_another_set_has_the_same_profile_with_srgb(tmp_path, packed):
    """Its colours are converted as those of the source are: else they differ by more than a copy's do."""
    wide = {"icc_profile": rgb_profile(DISPLAY_P3, 2.2)}
    red = Image.blend(scene(0), Image.new("RGB", scene(0).size, (230, 30, 20)), 0.6)
    for name, quality in (("images", 95), ("val", 60)):
        (tmp_path / name).mkdir()
        red.save(tmp_path / name / "red.jpg", quality=quality, **wide)
    (tmp_path / "images/other.jpg").write_bytes(jpeg(scene(1)))
    val = tmp_path / "val"
    if packed:
        val = tmp_path / "val set"
        pack(tmp_path / "val", val, workers=1, progress=False)
    pack(tmp_path / "images", tmp_path / "set", not_in=val, srgb=True, workers=1, progress=False)
    assert list(left_out(tmp_path / "set")) == ["red.jpg"]


def test_images_of_another_set_that_cannot_be_read_are_counted(photos, tmp_path, cli):
    for name in ("a", "b"):
        (tmp_path / "val").mkdir(exist_ok=True)
        (tmp_path / f"val/{name}.jpg").write_bytes(jpeg(scene(10))[:-2000])
    flags = ("--not-in", tmp_path / "val", "--drop-duplicates", "exact", "--workers", 1)
    said = cli("--src", photos, "--out", tmp_path / "set", *flags).stdout
    assert f"warning: 2 images of {tmp_path}/val cannot be read to be compared\n" in said


def test_images_with_one_name_in_another_set_are_all_left_out(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(jpeg(scene(number)))
    (tmp_path / "val.csv").write_text("path,called\n" + "".join(f"images/{number}.jpg,cat\n" for number in range(3)))
    pack(tmp_path / "val.csv", tmp_path / "val", name_column="called", workers=1, progress=False)
    manifest = pack(
        images, tmp_path / "set", not_in=tmp_path / "val", drop_duplicates="exact", workers=1, progress=False
    )
    named = [
        f"in another set: the same content as {tmp_path}/val/shard-000000.tar/cat (00000000000{n})" for n in range(3)
    ]
    assert manifest.samples == 1 and sorted(left_out(tmp_path / "set").values()) == named


def test_a_folder_is_another_set_too_and_exact_is_exact(photos, val, tmp_path):
    out, folder = tmp_path / "set", val / "images"
    pack(photos, out, not_in=[folder, val / "set"], drop_duplicates="exact", workers=1, progress=False)
    reasons = left_out(out)
    assert reasons.pop("cats/08-broken.jpg").startswith("truncated: ")
    assert reasons.pop("cats/10.jpg") == f"in another set: the same content as {folder}/a.jpg"
    assert reasons == EXACT
    with pytest.raises(PackError, match=r"--not-in .*nothing: cannot read PATH .*nothing: No such file"):
        pack(photos, tmp_path / "none", not_in=tmp_path / "nothing", progress=False)


def test_a_dry_run_says_that_images_are_read_to_be_compared(photos, val, tmp_path, cli):
    flags = ("--drop-duplicates", "near", "--not-in", val / "set", "--min-side", 20, "--dry-run")
    printed = cli("--src", photos, "--out", tmp_path / "set", *flags).stdout
    assert "filter     images under 20 pixels on a side\n" in printed
    assert "filter     near copies (up to 48 of 256 bits) of other images\n" in printed
    assert f"filter     near copies (up to 48 of 256 bits) of 4 images of {val / 'set'}\n" in printed
    assert "scan       29 images are read once more, before packing, to be compared\n" in printed


def test_a_hash_is_which_frequencies_are_above_their_median():
    """By the definition of the discrete cosine transform, one frequency after the other."""
    square = np.asarray(scene(0).convert("L").resize((64, 64)))
    waves = [[np.cos(np.pi * k * (2 * n + 1) / 128) for n in range(64)] for k in range(16)]
    found = np.array([[sum(square[y] @ wave * down[y] for y in range(64)) for wave in waves] for down in waves])
    bits = np.unpackbits(perceptual(square[None]).view(np.uint8)).reshape(16, 16)
    assert (bits == (found > np.median(found))).all()


def test_an_image_has_about_one_hash_at_whatever_resolution_it_is_decoded():
    """A JPEG is decoded at a part of its size, as a smaller copy or one in another format is not."""
    for seed in range(4):
        image, file = scene(seed, (700, 530)), io.BytesIO()
        image.save(file, "PNG")
        one, other = (fingerprint(data, EncodeOptions(), True)["hashes"] for data in (jpeg(image), file.getvalue()))
        assert np.unpackbits((one ^ other).view(np.uint8), axis=1).sum(1).max() <= 8


def test_near_copies_are_those_that_a_comparison_of_all_pairs_finds():
    """The first that stays within the distance, by brute force over pairs that differ in at most 7 low bits."""
    chance = np.random.default_rng(0)
    count, kept, distance = 400, 50, 40
    hashes = chance.integers(0, 2**64, (12, 1, 4), np.uint64)[chance.integers(0, 12, count)].repeat(6, 1)
    for image, window in np.ndindex(count, 6):  # up to 30 bits differ, most of them not among the lowest frequencies
        for bit in chance.integers(0, 256, chance.integers(0, 30)):
            hashes[image, window, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    colours = chance.integers(100, 110, (count, 48)).astype(np.uint8)
    low = np.ascontiguousarray(hashes).view(np.uint8).reshape(count, 6, 32)[..., :16:2]

    def apart(one, other) -> int:
        return int(np.unpackbits((one ^ other).view(np.uint8)).sum())

    def is_near(one: int, other: int) -> int | None:
        few = min(apart(low[one, w].copy(), low[other, 0].copy()) for w in range(6)) <= 7
        few = few or min(apart(low[other, w].copy(), low[one, 0].copy()) for w in range(6)) <= 7
        far = min(min(apart(hashes[a, w], hashes[b, 0]) for w in range(6)) for a, b in ((one, other), (other, one)))
        alike = np.abs(colours[one].astype(int) - colours[other]).mean() <= 6
        return far if few and alike and far <= distance else None

    for within in (True, False):
        expected = np.full(count, -1)
        for image in range(kept, count):
            for before in range(image if within else kept):
                if expected[before] < 0 and is_near(image, before) is not None:
                    expected[image] = before
                    break
        found, far = near_copies(hashes, colours, distance, kept, within)
        assert (found == expected).all()
        assert (found >= 0).sum() > 100
        assert all(far[image] == is_near(image, found[image]) for image in np.flatnonzero(found >= 0))
