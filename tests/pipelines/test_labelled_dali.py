"""Labelled batches by DALI against those of the torch backend: pixels, order, and damaged images."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmoco.demo.made import draw_image
from pipelines import LabelledCrops, LabelledPipeline, PipelineError, PipelineOptions, ViewSpec
from pipelines.pictures import pictures
from shards import PackOptions, SampleError, ShardSet, pack

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")
pytestmark = pytest.mark.dali

SIZES = [(96, 128), (128, 96), (40, 300), (300, 40), (101, 77), (64, 64), (50, 51), (240, 320), (12, 400), (400, 12)]
"""Heights and widths: wide, tall, odd, square, smaller than the crop's short side, and very wide and tall."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Each size as a plain, a grey and a progressive JPEG, and with and without chroma subsampling."""
    folder = tmp_path_factory.mktemp("labelled-dali")
    for number, (height, width) in enumerate(SIZES):
        image = draw_image(number % 4, height, width, np.random.default_rng(number))
        kinds = {
            "plain": (image, {}), "grey": (image.convert("L"), {}), "progressive": (image, {"progressive": True}),
            "full": (image, {"subsampling": 0, "quality": 95}),
        }  # fmt: skip
        for name, (picture, options) in kinds.items():
            path = folder / "images" / f"class {number % 2}" / f"{number}-{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, **options)
    pack(PackOptions(src=folder / "images", out=folder / "set", workers=1, shard_size=10), progress=False)
    return folder / "set"


@pytest.fixture
def shards(packed):
    with ShardSet(packed) as opened:
        yield opened


def options(backend):
    return PipelineOptions(pipeline=backend, threads=2)


def centre(shards, backend, **more):
    return LabelledPipeline(shards, options=options(backend), **{"resize": 72, "crop": 64, "batch_size": 7} | more)


def crops(shards, backend, spec, **more):
    return LabelledCrops(shards, spec, options=options(backend), **{"global_batch": 8, "seed": 3} | more)


def pixels(batches, spec):
    return torch.from_numpy(np.concatenate([pictures(batch.images, spec) for batch in batches])).int()


def assert_same_samples(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)
        assert a.images.shape == b.images.shape and a.images.dtype == b.images.dtype
        assert a.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("resize", "crop"), [(72, 64), (256, 224), (40, 40), (65, 31)])
def test_centre_crops_are_the_torch_backends(shards, resize, crop):
    size = {"resize": resize, "crop": crop}
    ours, theirs = centre(shards, "dali", **size), centre(shards, "torch", **size)
    assert (ours.backend, ours.reason, theirs.backend) == ("dali-cpu", "as requested", "torch")
    made, expected = list(ours), list(theirs)
    assert [len(batch.ids) for batch in made] == [7, 7, 7, 7, 7, 5]
    assert_same_samples(made, expected)
    difference = (pixels(made, ViewSpec(crop)) - pixels(expected, ViewSpec(crop))).abs()
    # the tolerances of the two backends' views in training: one level by rounding; in the outermost row, if it is the
    # image's, the difference of the filters beyond the edge
    assert difference[:, 1:-1, 1:-1].max() <= 1
    assert difference.max() <= (32 if crop == resize else 1)
    assert difference.float().mean() < 0.3
    assert_same_samples(list(ours), made)  # a second time, through a graph of its own


def test_a_probes_crops_are_the_torch_backends(shards):
    # no crop is so large that the torch backend decodes it at half the size
    spec = replace(ViewSpec.probe(64), area=(0.08, 0.5))
    ours, theirs = crops(shards, "dali", spec), crops(shards, "torch", spec)
    for epoch in (0, 1):
        made, expected = list(ours.epoch(epoch)), list(theirs.epoch(epoch))
        assert len(made) == 5
        assert_same_samples(made, expected)
        difference = (pixels(made, spec) - pixels(expected, spec)).abs()
        assert difference[:, 1:-1, 1:-1].max() <= 1
        assert difference.max() <= 32
    assert_same_samples(list(ours.epoch(1, 2)), made[2:])
    halves = [list(crops(shards, "dali", spec, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    for batch, *parts in zip(made, *halves, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)


def test_a_consumer_that_stops_early_leaves_nothing_behind(shards):
    import threading

    batches = iter(centre(shards, "dali", batch_size=4))
    next(batches)
    batches.close()
    assert not any(thread.name.startswith("pipelines-labelled") for thread in threading.enumerate())


def _with_junk(data):
    """Two bytes before the scan that libjpeg passes over and DALI's parser does not."""
    scan = data.index(b"\xff\xda")
    return data[:scan] + bytes(2) + data[scan:]


def _damage(shards, monkeypatch, sample, change):
    """Damage an image so that its checksum does not show it."""
    read = shards.read
    for name in ("read", "check"):
        monkeypatch.setattr(shards, name, lambda i: change(read(i)) if i == sample else read(i))


@pytest.mark.parametrize("sample", [0, 9, 31])
def test_an_image_that_dali_alone_rejects_is_evaluated_as_it_is(shards, monkeypatch, caplog, sample):
    clean = list(centre(shards, "dali"))
    _damage(shards, monkeypatch, sample, _with_junk)
    with caplog.at_level(logging.WARNING, "pipelines"):
        made = list(centre(shards, "dali"))
    assert not caplog.text
    assert_same_samples(made, clean)
    assert all(torch.equal(batch.images, expected.images) for batch, expected in zip(made, clean, strict=True))


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: data[:100] + b"\xff\xd9"])
def test_a_damaged_image_ends_both_backends_with_the_same_error(shards, monkeypatch, change):
    _damage(shards, monkeypatch, 9, change)
    messages = []
    for backend in ("torch", "dali"):
        batches = iter(centre(shards, backend))
        next(batches)
        with pytest.raises(PipelineError, match=r"sample 9 \(shard-000000\.tar, key .*cannot be decoded") as error:
            list(batches)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_bytes_that_differ_from_those_packed_are_bad_on_both_backends(shards, monkeypatch, caplog):
    """They may still decode. The torch backend makes the batch, and marks the image."""
    check, cause = shards.check, "the bytes differ from those packed (CRC-32)"

    def changed(sample):
        if sample == 9:
            raise SampleError(9, "shard-000000.tar", "key", cause)
        return check(sample)

    monkeypatch.setattr(shards, "check", changed)
    with caplog.at_level(logging.WARNING, "pipelines"):
        theirs, made = (list(centre(shards, backend, keep_bad=True)) for backend in ("torch", "dali"))
    assert f"{cause}; the torch backend makes its batch" in caplog.text
    assert [batch.bad for batch in made] == [batch.bad for batch in theirs]
    assert made[1].bad == {2: cause} and not made[0].bad
    assert torch.equal(made[1].images, theirs[1].images) and made[1].images[2].unique().numel() == 3  # black
    assert not torch.equal(made[2].images, theirs[2].images)
    for backend in ("torch", "dali"):
        with pytest.raises(PipelineError, match=r"sample 9 .* the bytes differ from those packed"):
            list(centre(shards, backend))


def test_a_set_whose_index_names_another_size_is_read_as_by_torch(shards, monkeypatch):
    """A centre crop needs no size from the index."""
    sizes = shards.sizes
    theirs = list(centre(shards, "torch"))

    def other(ids):
        found = sizes(ids)
        found[ids == 3] += 1
        return found

    monkeypatch.setattr(shards, "sizes", other)
    made = list(centre(shards, "dali"))
    assert torch.equal(made[0].images, theirs[0].images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_centre_crops_on_a_gpu_are_those_of_the_cpu(shards):
    """Not yet run on a GPU."""
    ours, theirs = list(centre(shards, "dali", device="cuda")), list(centre(shards, "torch"))
    for a, b in zip(ours, theirs, strict=True):
        assert a.images.is_cuda and torch.equal(a.ids, b.ids)
        difference = (pixels([a], ViewSpec(64)) - pixels([b], ViewSpec(64))).abs()
        # nvJPEG's transform and upsampling differ from libjpeg-turbo's by a few levels
        assert difference.float().mean() < 1
