"""Geometry and blur: the torch backend against torchvision and against DALI."""

from __future__ import annotations

import io
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image

from fastmoco.demo.made import draw_image
from pipelines import LabelledPipeline, PipelineError, ViewPair, ViewSpec, draw
from pipelines._random import uniforms
from pipelines._threads import worker_pool
from pipelines.colour import finish
from pipelines.decode import SHRINKS, Memory, _by_pillow, decode
from pipelines.pictures import compare, pictures, sheet
from pipelines.torch_cpu import TorchBackend, make_view, shrinkage
from pipelines.views import gaussian
from shards import ShardSet


@pytest.fixture(scope="module")
def images():
    """24 JPEG files of several sizes with detail at all scales."""
    encoded = []
    for index in range(24):
        height, width = ((375, 500), (500, 375), (120, 160), (90, 70))[index % 4]
        picture = draw_image(index % 4, height, width, np.random.default_rng(index))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=92)
        encoded.append(file.getvalue())
    return encoded


def _draws(images, spec):
    sizes = np.array([decode(image).shape[:2] for image in images], dtype=np.int32)
    place = {"seed": 0, "epoch": 0, "ids": np.arange(len(images)), "sizes": sizes}
    return sizes, tuple(draw(each, **place, view=view) for view, each in enumerate(ViewPair.of(spec)))


def test_decoding_gives_pillows_pixels(images):
    for encoded in images[:4]:
        theirs = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        np.testing.assert_array_equal(decode(encoded), theirs)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xd9", b"<html>"])
def test_what_is_no_jpeg_is_a_value_error(data):
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(data)


def test_another_size_than_the_indexs_is_an_error(images):
    with pytest.raises(ValueError, match="the index says 10x10"):
        decode(images[0], (10, 10))


@pytest.mark.parametrize("shrink", SHRINKS)
def test_a_shrunken_decode_is_libjpegs_and_memory_is_used_again(images, shrink):
    memory = Memory()
    for encoded in images[:4]:
        size = decode(encoded).shape[:2]
        found = decode(encoded, size, shrink, memory)
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = (-(-side // shrink) for side in image.size)
            image.draft("RGB", (image.width // shrink, image.height // shrink))
            assert image.size == (width, height)
            np.testing.assert_array_equal(found, np.asarray(image))
        assert np.shares_memory(found, memory.room("pixels", 1))


def test_jpegs_that_only_pillow_reads_are_decoded_in_full(images):
    junk = images[0][:-2] + bytes(range(200)) + images[0][-2:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(junk)
    size = decode(images[0]).shape[:2]
    np.testing.assert_array_equal(decode(junk, size, 2, Memory()), decode(images[0]))


def test_an_image_is_shrunk_only_where_both_crops_keep_twice_the_views_size():
    box = np.array([3, 5, 400, 500], np.int32)
    assert [shrinkage([box, box], size) for size in (25, 26, 50, 51, 100, 101)] == [8, 4, 4, 2, 2, 1]
    assert shrinkage([box, np.array([0, 0, 500, 199])], 50) == 1


@pytest.mark.parametrize("size", [32, 48, 65, 130])
@pytest.mark.parametrize("sigma", [0.1, 0.33, 0.34, 0.7, 1.3, 2.0])
def test_a_view_is_torchvisions_crop_resize_blur_and_flip(images, size, sigma):
    spec = replace(ViewSpec.moco_v2(size), blur=0.5, sigma=(sigma, sigma))
    _, (params, _) = _draws(images, spec)
    differences = []
    for slot, encoded in enumerate(images):
        image = decode(encoded)
        out = np.empty((size, size, 3), dtype=np.uint8)
        make_view(image, params, slot, out)
        box = params.box[slot].tolist()
        # in floats, for torchvision rounds three times on the way
        expected = TF.resized_crop(
            torch.from_numpy(image).permute(2, 0, 1).double(), *box, [size, size], antialias=True
        )
        if params.sigma[slot] > 0:
            sigma = float(params.sigma[slot])
            expected = TF.gaussian_blur(expected, len(gaussian(sigma)), sigma)
        if params.flip[slot]:
            expected = TF.horizontal_flip(expected)
        differences.append(np.abs(out - expected.permute(1, 2, 0).numpy()).max())
    # rounding to nearest is half a level; the views' arithmetic in 16 bits adds 0.02 at most, on black and white noise
    assert max(differences) <= 0.52


@pytest.mark.parametrize("size", [32, 65])
def test_flips_and_turns_are_torchvisions(images, size):
    """By the numbers as they are drawn: a horizontal flip, then a vertical one, then quarter turns to the left."""
    spec = replace(ViewSpec.moco_v2(size), vertical_flip=0.5, turns=0.75)
    _, (params, _) = _draws(images, spec)
    _, (upright, _) = _draws(images, replace(spec, flip=0.0, vertical_flip=0.0, turns=0.0))
    ids = np.arange(len(images))
    flips = uniforms(ids, seed=0, epoch=0, stream=0, count=9)[:, 8] < 0.5
    _, vertical, turned, how_far = uniforms(ids, seed=0, epoch=0, stream=2, count=4).T
    turns = np.where(turned < 0.75, 1 + np.floor(3 * how_far), 0).astype(int)
    seen = set()
    for slot, encoded in enumerate(images):
        image = decode(encoded)
        found, plain = (np.empty((size, size, 3), dtype=np.uint8) for _ in range(2))
        make_view(image, params, slot, found)
        make_view(image, upright, slot, plain)
        expected = torch.from_numpy(plain).permute(2, 0, 1)
        if flips[slot]:
            expected = TF.horizontal_flip(expected)
        if vertical[slot] < 0.5:
            expected = TF.vertical_flip(expected)
        for _ in range(turns[slot]):
            expected = TF.rotate(expected, 90)
        # the same weights for the same pixels, in whole numbers: equal
        np.testing.assert_array_equal(found, expected.permute(1, 2, 0))
        seen.add((bool(flips[slot]), bool(vertical[slot] < 0.5), int(turns[slot])))
    assert len(seen) > 8


@pytest.mark.parametrize("size", [31, 64, 224])
def test_colours_in_the_same_pass_are_those_of_a_second_one(images, size):
    spec = ViewPair.moco_v3(size).changed(vertical_flip=0.5, turns=0.5, solarize=0.5)
    sizes, params = _draws(images, spec)
    pool = worker_pool(2, "pipelines-test")
    levels = TorchBackend(spec, pool, pinned=False).views(images, sizes, params)
    coloured = TorchBackend(spec, pool, pinned=False, coloured=True).views(images, sizes, params)
    pool.shutdown()
    for plain, found, draws in zip(levels, coloured, params, strict=True):
        expected = finish(plain, draws, spec.query).permute(0, 2, 3, 1)
        # the same float32 operations, but a compiler may round a product before its sum in one of them and not in the
        # other: a few times half the spacing of numbers up to 8
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("width", [1, 2, 5, 6, 11])
def test_narrow_images_are_resized(width):
    image = np.random.default_rng(width).integers(0, 256, (7, width, 3), dtype=np.uint8)
    box = np.array([[1, 0, 5, width]], np.int32)
    spec = replace(ViewSpec.moco_v1(20), flip=0.0)
    params = draw(spec, seed=0, epoch=0, ids=np.zeros(1, np.int64), sizes=np.array([[7, width]]), view=0)
    params = replace(params, box=box)
    out = np.empty((20, 20, 3), dtype=np.uint8)
    make_view(image, params, 0, out)
    expected = TF.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1).double(), *box[0].tolist(), [20, 20], antialias=True
    )
    assert np.abs(out - expected.permute(1, 2, 0).numpy()).max() <= 0.52


def test_a_view_of_a_shrunken_image_is_near_that_of_the_whole_one(images):
    spec = replace(ViewSpec.moco_v2(40), area=(0.6, 1.0))
    sizes, (params, _) = _draws(images, spec)
    for slot in range(0, len(images), 4):
        assert shrinkage([params.box[slot]], 40) >= 2
        whole, shrunken = (np.empty((40, 40, 3), dtype=np.uint8) for _ in range(2))
        make_view(decode(images[slot]), params, slot, whole)
        make_view(decode(images[slot], tuple(sizes[slot]), 2), params, slot, shrunken, 2)
        difference = np.abs(whole.astype(int) - shrunken)
        assert difference.mean() < 2
        assert difference.max() <= 24


@pytest.mark.dali
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("case", ["resize", "flip", "turns", "blur", "v1", "v2", "v3"])
def test_dali_makes_the_same_views(images, size, case):
    pytest.importorskip("nvidia.dali")
    from pipelines.dali import DaliBackend

    plain = replace(ViewSpec.moco_v1(size), flip=0.0)
    spec = {
        "resize": plain,
        "flip": replace(plain, flip=1.0),
        "turns": replace(plain, flip=0.5, vertical_flip=0.5, turns=0.75),
        "blur": replace(ViewSpec.moco_v2(size), blur=1.0),
        "v1": ViewSpec.moco_v1(size),
        "v2": ViewSpec.moco_v2(size),
        "v3": ViewPair.moco_v3(size),
    }[case]
    sizes, params = _draws(images, spec)
    pool = worker_pool(2, "pipelines-test")
    torchs = TorchBackend(spec, pool, pinned=False, scaled=False).views(images, sizes, params)
    dali = DaliBackend(spec, len(images), torch.device("cpu"), pool, 2)
    dalis = dali.views(images, sizes, params)
    difference = torch.stack([(a.int() - b.int()).abs() for a, b in zip(torchs, dalis, strict=True)])
    pool.shutdown()
    # torch's views are rounded once, DALI's after each operation: one level inside. DALI's blur carries the
    # edge's difference inwards
    edge = 8 if case in ("blur", "v2", "v3") else 1
    assert difference[:, :, edge:-edge, edge:-edge].max() <= 1
    # in the outermost row an eighth of the filter lies beyond the crop: DALI repeats the edge pixel there, torch
    # cuts the filter off. An eighth of the contrast there: 32 of 255 levels
    assert difference.max() <= 32
    assert difference.float().mean() < 0.25
    assert (difference > 1).float().mean() < 0.01


def test_labelled_is_torchvisions_resize_and_centre_crop(shard_sets):
    with ShardSet(shard_sets / "val") as shards:
        pipeline = LabelledPipeline(shards, resize=56, crop=48, batch_size=10)
        batches = list(pipeline)
        assert [len(batch.ids) for batch in batches] == [10, 10, 4] and len(pipeline) == 3
        assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(24))
        labels = torch.cat([batch.labels for batch in batches])
        np.testing.assert_array_equal(labels, shards.labels(np.arange(24)))
        images = torch.cat([batch.images for batch in batches])
        for sample in range(0, 24, 5):
            whole = torch.from_numpy(decode(shards.read(sample))).permute(2, 0, 1)
            image = TF.center_crop(TF.resize(whole, 56, antialias=True), [48, 48])
            expected = TF.normalize(image.float() / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            # the same levels; normalising in another order of float32 operations
            torch.testing.assert_close(images[sample], expected, atol=1e-5, rtol=0)
        again = next(iter(pipeline))
        assert torch.equal(again.images, batches[0].images)
        assert again.images.is_contiguous(memory_format=torch.channels_last)


def test_labelled_reads_selected_samples_and_refuses_impossible_ones(shard_sets):
    with ShardSet(shard_sets / "val") as shards:
        some = np.array([7, 3, 11])
        (batch,) = LabelledPipeline(shards, resize=40, crop=40, batch_size=8, ids=some, dtype=torch.bfloat16)
        assert batch.ids.tolist() == [7, 3, 11]
        assert batch.images.dtype == torch.bfloat16
        with pytest.raises(PipelineError, match="crop 64 does not fit a short side of 56"):
            LabelledPipeline(shards, resize=56, crop=64, batch_size=8)


def test_sheet_shows_the_views_it_was_given(tmp_path):
    spec = ViewSpec.moco_v2(32)
    from pipelines import TwoViews

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    levels = torch.randint(0, 256, (2, 5, 3, 32, 32), dtype=torch.uint8)
    query, key = ((view / 255 - mean) / std for view in levels)
    sheet(TwoViews(query, key, torch.arange(5)), spec, tmp_path / "new" / "views.png", count=4, columns=2)
    picture = np.asarray(Image.open(tmp_path / "new" / "views.png"))
    assert picture.shape == (2 * 36 - 4, 2 * 68 - 4, 3)
    np.testing.assert_array_equal(picture[:32, :32], levels[0, 0].permute(1, 2, 0))
    np.testing.assert_array_equal(picture[36:68, 68 + 32 : 68 + 64], levels[1, 3].permute(1, 2, 0))
    np.testing.assert_array_equal(pictures(query, spec), levels[0].permute(0, 2, 3, 1))


def test_the_sheet_command_draws_every_backend(shard_sets, tmp_path, in_process):
    out = tmp_path / "views.png"
    arguments = ["--shards", str(shard_sets / "val"), "--out", str(out), "--image-size", "32", "--count", "3"]
    said = in_process("-m", "pipelines.sheet", *arguments).stdout
    assert said.count("row ") == 6
    assert str(out) in said
    with ShardSet(shard_sets / "val") as shards:
        assert len(compare(shards, ViewSpec.moco_v1(32), out, count=3)) == 6
    assert Image.open(out).height == 16 + 3 * 36 - 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--shards": "{folder}/none"}, "no shard set at {folder}/none"),
        ({"--shards": "{folder}/damaged"}, "shard-000000.npy"),
        ({"--out": "{folder}"}, "--out {folder} is a folder; give the name of a file"),
        ({"--out": "{folder}/file/views.png"}, "{folder}/file"),
        ({"--count": "0"}, "--count 0 is outside 1..256"),
        ({"--image-size": "4"}, "--image-size 4 is outside 16..4096"),
        ({"--seed": "-1"}, "--seed -1 is outside 0.."),
        ({"--epoch": "-1"}, "--epoch -1 is outside 0.."),
    ],
)
def test_the_sheet_command_ends_an_error_in_one_line(shard_sets, tmp_path, in_process, change, message):
    shutil.copytree(shard_sets / "val", tmp_path / "damaged")
    for index in (tmp_path / "damaged").glob("*.npy"):
        index.write_bytes(index.read_bytes()[:-5])
    (tmp_path / "file").write_text("no folder")
    flags = {"--shards": str(shard_sets / "val"), "--out": str(tmp_path / "views.png"), "--image-size": "32"}
    flags |= {"--count": "3"} | {flag: value.format(folder=tmp_path) for flag, value in change.items()}
    words = [word for pair in flags.items() for word in pair]
    done = in_process("-m", "pipelines.sheet", *words, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("fastmoco sheet: "), done.stderr
    assert message.format(folder=tmp_path) in done.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own size in /proc")
def test_memory_that_runs_out_is_no_images_fault():
    buffer = io.BytesIO()
    Image.new("CMYK", (8000, 8000)).save(buffer, "JPEG")  # 256 MB of pixels
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), limits[1]))
    try:
        with pytest.raises(MemoryError):
            _by_pillow(buffer.getvalue(), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
