"""The linear probe's crops, and evaluations that processes share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from pipelines import (
    EpochOrder,
    LabelledCrops,
    LabelledPipeline,
    PipelineError,
    PipelineOptions,
    ViewSpec,
    centre,
    draw,
)
from pipelines._threads import worker_pool
from pipelines.decode import decode
from pipelines.pictures import pictures
from pipelines.torch_cpu import TorchBackend, shrinkage
from shards import ShardSet

SPEC = ViewSpec.probe(32)


@pytest.fixture
def shards(shard_sets):
    with ShardSet(shard_sets / "train") as opened:
        yield opened


def _assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels) and torch.equal(a.images, b.images)


def test_crops_are_torchvisions_for_the_drawn_boxes(shards):
    batches = list(LabelledCrops(shards, SPEC, global_batch=20, seed=3).epoch(1))
    assert [len(batch.ids) for batch in batches] == [20] * 4
    flips = 0
    for batch in batches:
        ids = batch.ids.numpy()
        np.testing.assert_array_equal(batch.labels, shards.labels(ids))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        params = draw(SPEC, seed=3, epoch=1, ids=ids, sizes=shards.sizes(ids), view=0)
        for slot, sample in enumerate(ids.tolist()):
            image = torch.from_numpy(decode(shards.read(sample))).permute(2, 0, 1).double()
            expected = TF.resized_crop(image, *params.box[slot].tolist(), [32, 32], antialias=True)
            if params.flip[slot]:
                expected, flips = TF.horizontal_flip(expected), flips + 1
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPEC.mean, SPEC.std))
            levels = (batch.images[slot] * std + mean) * 255
            # rounding to nearest is half a level
            assert (levels - expected).abs().max() <= 0.51
    assert 20 < flips < 60


def test_the_order_is_epoch_orders_and_nothing_depends_on_threads_restarts_or_ranks(shards):
    def batches(epoch=2, start_step=0, **options):
        return list(LabelledCrops(shards, SPEC, **{"global_batch": 12, "seed": 5, **options}).epoch(epoch, start_step))

    reference = batches(options=PipelineOptions(threads=1))
    order = EpochOrder(96, 12, 0, 1, 5, 2)
    assert [batch.ids.tolist() for batch in reference] == [order.ids(step).tolist() for step in range(8)]
    _assert_equal(batches(options=PipelineOptions(threads=3)), reference)
    _assert_equal(batches(start_step=5), reference[5:])
    for batch, *halves in zip(reference, batches(world_size=2), batches(rank=1, world_size=2), strict=True):
        assert torch.equal(torch.cat([half.images for half in halves]), batch.images)
        assert torch.equal(torch.cat([half.ids for half in halves]), batch.ids)
    assert not torch.equal(batches(epoch=3)[0].ids, reference[0].ids)
    assert len(batches(global_batch=90)) == 1


def test_selected_samples_are_read_and_impossible_ones_refused(shards):
    some = np.flatnonzero(shards.labels(np.arange(96)) == 2)
    crops = LabelledCrops(shards, SPEC, global_batch=5, ids=some, dtype=torch.bfloat16)
    assert crops.steps_per_epoch == len(some) // 5
    for batch in crops.epoch(0):
        assert set(batch.labels.tolist()) == {2} and batch.images.dtype == torch.bfloat16
    with pytest.raises(PipelineError, match="start_step 5"):
        crops.epoch(0, 5)
    with pytest.raises(PipelineError, match=r"ViewSpec\.probe"):
        LabelledCrops(shards, replace(SPEC, blur=0.5), global_batch=5)
    with pytest.raises(PipelineError, match="use 8 or 10"):
        LabelledCrops(shards, SPEC, global_batch=9, world_size=2)


def test_large_crops_are_decoded_shrunken_as_the_torch_backend_does(tmp_path):
    from fastmoco.demo.made import make_images
    from shards import PackOptions, pack

    make_images(tmp_path / "images", classes=2, per_class=3, size=(160, 200), seed=0)
    pack(PackOptions(src=tmp_path / "images", out=tmp_path / "set", workers=1), progress=False)
    spec = replace(ViewSpec.probe(16), area=(0.7, 1.0))
    with ShardSet(tmp_path / "set") as shards:
        (batch,) = LabelledCrops(shards, spec, global_batch=6).epoch(0)
        ids = batch.ids.numpy()
        params = draw(spec, seed=0, epoch=0, ids=ids, sizes=shards.sizes(ids), view=0)
        assert all(shrinkage([box], 16) >= 2 for box in params.box)
        pool = worker_pool(1, "pipelines-test")
        encoded = [shards.read(sample) for sample in ids.tolist()]
        expected, _ = TorchBackend(spec, pool, pinned=False).views(encoded, shards.sizes(ids), (params, params))
        pool.shutdown()
        np.testing.assert_array_equal(pictures(batch.images, spec), expected)


@pytest.mark.parametrize("size", [(8, 200), (200, 8), (8, 131), (64, 1700), (1700, 64), (1, 40), (39, 640)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_of_a_long_image_the_middle_alone_is_resized(size, kind, monkeypatch):
    image = torch.randint(256, (*size, 3), generator=torch.Generator().manual_seed(1)).to(kind).permute(2, 0, 1)
    height, width = size
    shape = [40, int(40 * width / height)] if height < width else [int(40 * height / width), 40]
    expected = TF.center_crop(TF.resize(image.double(), shape, antialias=True), [32, 32])
    resize, sizes = torch.nn.functional.interpolate, []

    def recorded(*given, **named):
        result = resize(*given, **named)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch.nn.functional, "interpolate", recorded)
    found = centre.centre_view(image, 40, 32)
    assert found.shape == (3, 32, 32) and found.dtype == kind
    # rounding to nearest, and for shorter images between the passes
    assert (found.double() - expected).abs().max() <= (1e-3 if kind is torch.float32 else 1.0)
    assert max(sizes) <= 3 * 40 * 40 * 16


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_processes_that_share_an_evaluation_read_every_sample_once(shards, world_size):
    ids = np.random.default_rng(0).permutation(96)[:50]
    whole = {}
    for batch in LabelledPipeline(shards, resize=40, crop=32, batch_size=16, ids=ids):
        whole |= dict(zip(batch.ids.tolist(), batch.images, strict=True))
    seen = []
    for rank in range(world_size):
        options = {"resize": 40, "crop": 32, "batch_size": 4, "ids": ids, "rank": rank, "world_size": world_size}
        for batch in LabelledPipeline(shards, **options):
            seen += batch.ids.tolist()
            for sample, image in zip(batch.ids.tolist(), batch.images, strict=True):
                assert torch.equal(image, whole[sample])
    assert sorted(seen) == sorted(ids.tolist())
    with pytest.raises(PipelineError, match="rank 3 is not one of 3 ranks"):
        LabelledPipeline(shards, resize=40, crop=32, batch_size=4, rank=3, world_size=3)
