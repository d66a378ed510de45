"""Batches of two views: contracts that hold for every backend."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.demo.made import make_images
from pipelines import PipelineError, PipelineOptions, TwoViews, ViewSpec, build
from pipelines._threads import HostMemory, Prefetcher, spread, worker_pool
from pipelines.choice import choose
from shards import PackOptions, ShardSet, pack
from tests.support.views import assert_same_views

SPEC = ViewSpec.moco_v2(32)


def _available():
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return [pytest.param("dali", marks=[pytest.mark.dali, pytest.mark.skip(reason="needs NVIDIA DALI")])]
    return [pytest.param("dali", marks=pytest.mark.dali)]


BACKENDS = ["torch", *_available()]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """40 images of two sizes in 3 shards."""
    folder = tmp_path_factory.mktemp("pipelines")
    make_images(folder / "images", classes=2, per_class=16, size=(72, 96), seed=0)
    make_images(folder / "images", classes=1, per_class=8, size=(80, 48), seed=1, first=16)
    pack(PackOptions(src=folder / "images", out=folder / "set", workers=1, shard_size=16), progress=False)
    return folder / "set"


@pytest.fixture
def shards(packed):
    with ShardSet(packed) as opened:
        yield opened


def _batches(shards, backend, *, epoch=0, start_step=0, threads=None, prefetch=2, **place):
    options = PipelineOptions(pipeline=backend, threads=threads, prefetch=prefetch)
    with build(shards, SPEC, options, **{"global_batch": 8, "seed": 4, **place}) as pipeline:
        return list(pipeline.epoch(epoch, start_step))


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_have_the_promised_form(shards, backend):
    batches = _batches(shards, backend)
    assert len(batches) == 5
    for batch in batches:
        for view in (batch.query, batch.key):
            assert view.shape == (8, 3, 32, 32)
            assert view.dtype == torch.float32
            assert view.is_contiguous(memory_format=torch.channels_last)
        assert batch.ids.dtype == torch.int64
        assert not torch.equal(batch.query, batch.key)
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == list(range(40))
    # normalised: black and white lie within (0 - mean) / std and (1 - mean) / std
    assert batches[0].query.min() >= -2.12
    assert batches[0].query.max() <= 2.65


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_restarts_and_world_size_do_not_change_a_byte(shards, backend):
    reference = _batches(shards, backend, epoch=1, threads=1)
    assert_same_views(_batches(shards, backend, epoch=1, threads=3), reference)
    assert_same_views(_batches(shards, backend, epoch=1, start_step=3), reference[3:])
    assert_same_views(_batches(shards, backend, epoch=1, start_step=5), [])
    assert_same_views(_batches(shards, backend, epoch=1, prefetch=4), reference)
    for world_size, start_step in ((2, 0), (4, 2)):
        options = {"epoch": 1, "start_step": start_step, "world_size": world_size}
        ranks = [_batches(shards, backend, rank=rank, **options) for rank in range(world_size)]
        joined = [
            TwoViews(*(torch.cat([getattr(part, name) for part in parts]) for name in ("query", "key", "ids")))
            for parts in zip(*ranks, strict=True)
        ]
        assert_same_views(joined, reference[start_step:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_epochs_and_seeds_give_other_views(shards, backend):
    first = _batches(shards, backend)[0]
    for other in (_batches(shards, backend, epoch=1)[0], _batches(shards, backend, seed=5)[0]):
        assert not torch.equal(first.ids, other.ids)
        assert not torch.equal(first.query, other.query)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_held_batch_stays_as_it_was(shards, backend):
    with build(shards, SPEC, PipelineOptions(pipeline=backend, prefetch=1), global_batch=8) as pipeline:
        held = [(batch, batch.query.clone(), batch.key.clone()) for e in range(3) for batch in pipeline.epoch(e)]
    for batch, query, key in held:
        assert torch.equal(batch.query, query)
        assert torch.equal(batch.key, key)


def _damage(path, shards, sample, how):
    """Damage a sample's bytes in its tar."""
    tar = path / shards.locate(sample)[0]
    data = bytearray(tar.read_bytes())
    encoded = shards.read(sample)
    start = bytes(data).index(encoded)
    middle, end = start + len(encoded) // 2, start + len(encoded)
    if how == "zeroed":
        data[middle : middle + 200] = bytes(200)
    elif how == "flipped":
        data[middle] ^= 0xFF
    elif how == "cut":
        data[middle:end] = bytes(end - middle)
    tar.write_bytes(data)


def test_a_bad_image_costs_that_image_alone(packed, tmp_path, caplog):
    copy = tmp_path / "set"
    shutil.copytree(packed, copy)
    with ShardSet(packed) as whole:
        reference = {name: _batches(whole, *name) for name in _names()}
        bad = [
            int(reference["torch",][2].ids[5]),
            int(reference["torch",][3].ids[5]),
            int(reference["torch",][0].ids[1]),
        ]
        for sample, how in zip(bad, ("flipped", "zeroed", "cut"), strict=True):
            _damage(copy, whole, sample, how)
    ids = {}
    with ShardSet(copy) as shards:
        for name in _names():
            quarantine = tmp_path / name[0] / "quarantine.jsonl"
            with build(
                shards, SPEC, PipelineOptions(pipeline=name[0]), global_batch=8, seed=4, quarantine=quarantine
            ) as pipeline:
                batches = list(pipeline.epoch(0))
                assert pipeline.quarantined == 3
            ids[name] = [batch.ids.tolist() for batch in batches]
            for step, (batch, clean) in enumerate(zip(batches, reference[name], strict=True)):
                same = batch.ids == clean.ids
                assert (~same).nonzero().ravel().tolist() == {2: [5], 3: [5], 0: [1]}.get(step, [])
                assert torch.equal(batch.query[same], clean.query[same])
                assert not set(bad) & set(batch.ids.tolist())
            # the stand-in of step 2's image is step 3's at first, which is bad too, then step 4's
            assert batches[2].ids[5] == batches[3].ids[5] == reference[name][4].ids[5]
            assert torch.equal(batches[2].query[5], reference[name][4].query[5])
            lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
            assert [line["sample"] for line in lines] == [bad[2], bad[0], bad[1]]
            assert all(line["shard"].endswith(".tar") and len(line["key"]) == 12 and line["cause"] for line in lines)
    assert len({str(value) for value in ids.values()}) == 1
    assert f"bad image: sample {bad[0]}" in caplog.text


def _names():
    return [(getattr(backend, "values", (backend,))[0],) for backend in BACKENDS if _runs(backend)]


def _runs(backend):
    return not any(mark.name == "skip" for mark in getattr(backend, "marks", ()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_set_that_is_bad_throughout_ends_with_a_remedy(packed, tmp_path, backend):
    copy = tmp_path / "set"
    shutil.copytree(packed, copy)
    for tar in copy.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    with ShardSet(copy) as shards, pytest.raises(PipelineError, match="fastmoco verify"):
        _batches(shards, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_that_only_the_decoder_finds_bad_is_replaced(shards, backend, monkeypatch):
    """The checksum is right but the image cannot be decoded, for example because a laxer decoder packed it."""
    clean = _batches(shards, backend)
    bad = int(clean[1].ids[2])
    check = shards.check
    cut = check(bad)[:300] + b"\xff\xd9"
    monkeypatch.setattr(shards, "check", lambda sample: cut if sample == bad else check(sample))
    batches = _batches(shards, backend)
    assert batches[1].ids[2] == clean[2].ids[2]
    others = [slot for slot in range(8) if slot != 2]
    assert torch.equal(batches[1].query[others], clean[1].query[others])
    assert_same_views(batches[2:], clean[2:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_early_leaves_no_thread(shards, backend):
    before = set(threading.enumerate())
    with build(shards, SPEC, PipelineOptions(pipeline=backend), global_batch=8) as pipeline:
        for _ in pipeline.epoch(0):
            break
        with pytest.raises(ZeroDivisionError):
            for _ in pipeline.epoch(0):
                raise ZeroDivisionError
        left = pipeline.epoch(0)  # held, and not finished
        next(left)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("pipelines")} <= before
    with pytest.raises(RuntimeError, match="closed"):
        next(left)
    with pytest.raises(RuntimeError, match="closed"):
        pipeline.epoch(0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_next_epochs_first_batches_are_made_before_it_begins(shards, backend):
    def makers():
        return [t for t in threading.enumerate() if t.name == "pipelines-batches"]

    apart = [_batches(shards, backend, epoch=epoch) for epoch in range(3)]
    with build(shards, SPEC, PipelineOptions(pipeline=backend), global_batch=8, seed=4) as pipeline:
        assert_same_views(list(pipeline.epoch(0)), apart[0])
        (first,) = makers()
        for epoch in (1, 2):
            assert_same_views(list(pipeline.epoch(epoch)), apart[epoch])
            assert makers() == [first]  # the same thread continued into the next epoch
        assert_same_views(list(pipeline.epoch(1, 2)), apart[1][2:])
        (other,) = makers()
        assert other is not first
        assert list(pipeline.epoch(2, 5)) == []
        assert_same_views(list(pipeline.epoch(2)), apart[2])
        next(pipeline.epoch(0))
    assert makers() == []


def test_memory_of_released_batches_is_used_again():
    memory = HostMemory()
    held = [memory.lend((4, 5)) for _ in range(3)]
    places = [tensor.data_ptr() for tensor in held]
    assert len(set(places)) == 3
    part = held[1].permute(1, 0)[2:]
    del held[1]
    assert memory.lend((4, 5)).data_ptr() not in places  # a part of it is still held
    del part
    assert memory.lend((4, 5)).data_ptr() == places[1]
    assert memory.lend((8, 5), torch.bfloat16).data_ptr() == places[1]  # as many bytes
    assert memory.lend((4, 6)).data_ptr() not in places


def test_spread_keeps_the_order_and_raises():
    pool = worker_pool(3, "pipelines-test")
    assert spread(pool, lambda number: number * number, 100) == [number * number for number in range(100)]
    assert spread(pool, str, 0) == []
    with pytest.raises(ZeroDivisionError):
        spread(pool, lambda number: 1 // (number - 50), 100)
    pool.shutdown()


def test_an_error_in_the_background_reaches_the_consumer_with_its_place():
    def make(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    ahead = Prefetcher(map(make, range(5)), depth=2, name="pipelines-test")
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(ahead)
    assert caught.traceback[-1].name == "make"
    ahead.close()


def test_workers_run_on_one_core_and_leave_the_callers_setting_alone():
    setting = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pool = worker_pool(2, "pipelines-test")
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}
        assert torch.get_num_threads() == 2
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
        pool.shutdown()
    finally:
        torch.set_num_threads(setting)


def test_constant_gives_one_real_batch_for_ever(shards):
    with build(shards, SPEC, PipelineOptions(pipeline="constant"), global_batch=8, seed=4) as pipeline:
        assert pipeline.backend == "constant"
        batches = [*pipeline.epoch(0), *pipeline.epoch(1, start_step=3)]
    assert len(batches) == 5 + 2
    assert all(batch is batches[0] for batch in batches)
    assert_same_views(batches[:1], _batches(shards, "torch")[:1])


def test_the_reason_says_why():
    backend, reason = choose("auto", torch.device("cpu"))
    assert backend == "torch"
    assert "cpu" in reason
    assert choose("torch", torch.device("cuda")) == ("torch", "as requested")


def test_without_dali_the_error_has_the_command(monkeypatch):
    monkeypatch.setattr(sys.modules[choose.__module__], "installed", lambda: False)
    with pytest.raises(PipelineError, match=r"pip install 'fastmoco\[cuda1[23]\]'"):
        choose("dali", torch.device("cpu"))
    backend, reason = choose("auto", torch.device("cuda"))
    assert backend == "torch"
    assert "not installed" in reason


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"global_batch": 41}, "40 samples do not fill one global batch of 41"),
        ({"global_batch": 9, "world_size": 2}, "use 8 or 10"),
    ],
)
def test_build_says_what_to_use_instead(shards, place, message):
    with pytest.raises(PipelineError, match=message):
        build(shards, SPEC, PipelineOptions(pipeline="torch"), **{"global_batch": 8, **place})


def test_steps_outside_the_epoch_are_refused(shards):
    with (
        build(shards, SPEC, PipelineOptions(pipeline="torch"), global_batch=8) as pipeline,
        pytest.raises(PipelineError, match="start_step 6"),
    ):
        pipeline.epoch(0, start_step=6)


def test_half_precision_views(shards):
    half = _batches(shards, "torch", dtype=torch.bfloat16)[0]
    full = _batches(shards, "torch")[0]
    assert torch.equal(half.query, full.query.bfloat16())
    assert np.array_equal(half.ids, full.ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_batches_are_the_float32_ones_rounded(shards, backend):
    halves = _batches(shards, backend, dtype=torch.bfloat16)
    for half, full in zip(halves, _batches(shards, backend), strict=True):
        assert half.query.dtype is torch.bfloat16
        assert half.query.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(half.query, full.query.bfloat16())
        assert torch.equal(half.key, full.key.bfloat16())


def _threads():
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_preparing_batches_starts_no_openmp_threads(shards):
    """A second team of them makes the model's threads, then more than the cores, sleep at each of their loops."""
    setting = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(10**6).mul_(2)  # starts this thread's own OpenMP team before counting
    found = {}
    try:
        for dtype in (torch.float32, torch.bfloat16):
            before = _threads()
            with build(shards, SPEC, PipelineOptions(pipeline="torch"), global_batch=40, dtype=dtype) as pipeline:
                batches = pipeline.epoch(0)
                next(batches)
                # OpenMP's are none of Python's; those of others come and go, and are not counted
                found[dtype] = _threads() - before - {thread.native_id for thread in threading.enumerate()}
                batches.close()
    finally:
        torch.set_num_threads(setting)
    assert not any(found.values()), found
