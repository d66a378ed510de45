"""Views whose size changes within a run: each batch is that of a pipeline of its size, wherever reading begins."""

from __future__ import annotations

import pytest

from pipelines import PipelineError, PipelineOptions, ViewPair, build
from pipelines.choice import installed
from pipelines.progressive import ProgressivePipeline
from shards import ShardSet
from tests.support.views import assert_same_views

SIZES = [(0, 16), (4, 24), (6, 32)]
STEPS = 4  # of the 24 images, an epoch
NEEDS_DALI = pytest.mark.skipif(not installed(), reason="needs NVIDIA DALI")
BACKENDS = ["torch", pytest.param("dali", marks=[pytest.mark.dali, NEEDS_DALI])]


@pytest.fixture
def shards(shard_sets):
    with ShardSet(shard_sets / "val") as opened:
        yield opened


def maker(shards, backend):
    """Makes pipelines by their size, and counts those that are open."""
    options, made = PipelineOptions(pipeline=backend, threads=1), []

    def make(size):
        assert all(pipeline._closed for pipeline in made)
        made.append(build(shards, ViewPair.moco_v2(size), options, global_batch=6, seed=5))
        return made[-1]

    return make, made


def whole(shards, backend):
    """The batches of two epochs, of each size by a pipeline of that size alone."""
    make, _ = maker(shards, backend)
    found = []
    for (first, size), (end, _) in zip(SIZES, [*SIZES[1:], (2 * STEPS, 0)], strict=True):
        with make(size) as pipeline:
            epoch, start = divmod(first, STEPS)
            found += list(pipeline.epoch(epoch, start))[: end - first]
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_that_of_its_size_wherever_reading_begins(shards, backend):
    """Within an epoch and at its end; batches that were made ahead of a change are not taken for later ones."""
    expected = whole(shards, backend)
    assert [batch.query.shape[-1] for batch in expected] == [16] * 4 + [24] * 2 + [32] * 2
    for start in (0, 3, 4, 5, 6):
        make, made = maker(shards, backend)
        epoch, first = divmod(start, STEPS)
        with ProgressivePipeline(make, SIZES, start) as pipeline:
            assert (pipeline.backend, pipeline.order, pipeline.steps_per_epoch) == (
                *(made[0].backend, "global", STEPS),
            )
            batches = list(pipeline.epoch(epoch, first))
            batches += list(pipeline.epoch(1)) if epoch == 0 else []
        assert_same_views(batches, expected[start:])
        assert len(made) == sum(end > start for end, _ in [*SIZES[1:], (9, 0)])
        assert all(each._closed for each in made)


def test_steps_that_an_epoch_does_not_have_are_refused(shards):
    with ProgressivePipeline(maker(shards, "torch")[0], SIZES) as pipeline:
        assert list(pipeline.epoch(0, STEPS)) == []
        with pytest.raises(PipelineError, match="start_step 5 is outside the epoch's steps 0 to 4"):
            list(pipeline.epoch(1, STEPS + 1))
