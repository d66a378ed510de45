"""Streams of tars: the same batches again, on any backend, with equal steps on ranks with unequal tars."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmoco.demo.made import draw_image
from pipelines import PipelineError, PipelineOptions, ViewSpec, build_stream, draw
from pipelines._threads import worker_pool
from pipelines.colour import finish
from pipelines.order.stream import TarOrder
from pipelines.torch_cpu import TorchBackend
from shards import StreamError
from shards.foreign.streaming import expand, images
from shards.storage.store import open_store
from tests.support.tars import write_tar
from tests.support.views import assert_same_views

SPEC = ViewSpec.moco_v2(32)
COUNTS = (11, 3, 7, 1, 9)  # images of the tars


def _backends():
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return ["torch", pytest.param("dali", marks=[pytest.mark.dali, pytest.mark.skip(reason="needs NVIDIA DALI")])]
    return ["torch", pytest.param("dali", marks=pytest.mark.dali)]


def _jpeg(number, kind="JPEG", **options):
    picture = draw_image(number % 4, 48 + number % 3 * 8, 64, np.random.default_rng(number))
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Tars of unequal length; not to be changed."""
    folder = tmp_path_factory.mktemp("stream")
    numbers = itertools.count()
    for tar, count in enumerate(COUNTS):
        members = {}
        for number in itertools.islice(numbers, count):
            members |= {f"{number:06d}.jpg": _jpeg(number), f"{number:06d}.txt": b"a caption"}
        write_tar(folder / f"{tar:03d}.tar", members)
    return expand(f"{folder}/{{000..004}}.tar")


def _batches(tars, *, epoch=0, start_step=0, backend="torch", buffer=8, threads=None, **place):
    options = PipelineOptions(pipeline=backend, shuffle_buffer=buffer, threads=threads)
    with build_stream(
        tars, SPEC, options, **{"images_per_epoch": 24, "global_batch": 4, "seed": 4, **place}
    ) as pipeline:
        return list(pipeline.epoch(epoch, start_step))


def _ids(batches):
    return torch.cat([batch.ids for batch in batches]).tolist()


@pytest.mark.parametrize("backend", _backends())
def test_a_run_again_and_a_start_within_an_epoch_give_the_same_batches(tars, backend):
    options = {"backend": backend, "epoch": 1}
    reference = _batches(tars, threads=1, **options)
    assert len(reference) == 6
    assert_same_views(_batches(tars, threads=3, **options), reference)
    assert_same_views(_batches(tars, start_step=4, **options), reference[4:])
    assert _batches(tars, start_step=6, **options) == []
    small = PipelineOptions(pipeline=backend, shuffle_buffer=8)
    with build_stream(tars, SPEC, small, images_per_epoch=24, global_batch=4, seed=4) as pipeline:
        assert pipeline.order == "stream"
        both = [*pipeline.epoch(0, 5), *pipeline.epoch(1)]
    assert_same_views(both[1:], reference)


def test_views_are_those_drawn_for_the_id(tars):
    batch = _batches(tars, epoch=2)[3]
    encoded = []
    for sample in batch.ids.tolist():
        place = sample & 0xFFFFFFFF
        encoded.append(next(image.data for image in images(tars[sample >> 32]) if image.place == place))
    sizes = np.array([Image.open(io.BytesIO(data)).size[::-1] for data in encoded], dtype=np.int32)
    params = tuple(draw(SPEC, seed=4, epoch=2, ids=batch.ids.numpy(), sizes=sizes, view=view) for view in (0, 1))
    pool = worker_pool(1, "pipelines-test")
    query, key = TorchBackend(SPEC, pool, pinned=False).views(encoded, sizes, params)
    pool.shutdown()
    assert torch.equal(batch.query, finish(query, params[0], SPEC))
    assert torch.equal(batch.key, finish(key, params[1], SPEC))


def test_other_epochs_and_seeds_give_other_orders(tars):
    first = _ids(_batches(tars))
    others = [_ids(_batches(tars, epoch=1)), _ids(_batches(tars, seed=5)), _ids(_batches(tars, buffer=1))]
    assert all(first != other for other in others)
    assert first != sorted(first)
    # a buffer of one changes nothing: the lanes alone mix, and each keeps the order of its tars
    places = [sample & 0xFFFFFFFF for sample in others[2] if sample >> 32 == 0]
    assert places == sorted(places)
    # tars come in another order in every epoch
    assert len({tuple(TarOrder(tars, seed=1).of_pass(epoch, 0)) for epoch in range(8)}) > 4


def test_ranks_with_unequal_tars_have_equal_steps_and_no_id_twice_in_the_first_round(tars):
    for epoch in range(4):
        ranks = [
            _batches(tars, epoch=epoch, rank=rank, world_size=2, images_per_epoch=96, global_batch=8)
            for rank in range(2)
        ]
        assert [len(batches) for batches in ranks] == [12, 12]
        seen = []
        for rank, batches in enumerate(ranks):
            tar_order = TarOrder(tars, rank, 2, 4)
            mine = tar_order.of_pass(epoch, 0)
            assert sorted(mine) == sorted(tar_order.of_pass(epoch, 1))
            held = sum(COUNTS[tar] for tar in mine)
            ids = _ids(batches)
            first = ids[:held]
            assert len(set(first)) == held and {sample >> 32 for sample in first} == set(mine.tolist())
            # whole rounds in sequence: numbers of appearances differ by one at most
            assert max(Counter(ids).values()) - min(Counter(ids).values()) <= 1
            seen.append(set(first))
        assert not seen[0] & seen[1]
        assert len(seen[0] | seen[1]) == sum(COUNTS)


def test_an_image_that_comes_again_in_an_epoch_is_seen_in_other_views(tars):
    batches = _batches(tars[3:4], global_batch=1, images_per_epoch=3)
    assert len({batch.ids.item() for batch in batches}) == 1
    assert not torch.equal(batches[0].query, batches[1].query)


def test_more_ranks_than_tars_are_refused(tars):
    with pytest.raises(PipelineError, match="5 tars are too few for 6 ranks"):
        _batches(tars, world_size=6, global_batch=6)
    with pytest.raises(PipelineError, match="images_per_epoch=3 does not fill one global batch: use 4"):
        _batches(tars, images_per_epoch=3)
    with pytest.raises(PipelineError, match="start_step 7"):
        _batches(tars, start_step=7)


@pytest.mark.parametrize("backend", _backends())
def test_bad_images_are_replaced_counted_and_named_and_other_formats_are_converted(tmp_path, backend, caplog):
    files = {f"{n}.jpg": _jpeg(n) for n in range(16)}
    files["16.png"] = _jpeg(16, "PNG")
    files["17.webp"] = _jpeg(17, "WEBP")
    turned = Image.Exif()
    turned[0x0112] = 6
    files["18.jpg"] = _jpeg(18, exif=turned)
    files["19.jpg"] = _jpeg(19)
    clean = str(write_tar(tmp_path / "clean.tar", files))
    options = {"images_per_epoch": 20, "backend": backend}
    reference = _batches([clean], **options)
    middle = len(files["9.jpg"]) // 2
    # only decoding detects this one: its header is intact, its first Huffman table is not
    undecodable = bytearray(files["5.jpg"])
    table = undecodable.index(b"\xff\xc4") + 5
    undecodable[table : table + 16] = b"\xff" * 16
    bad = {"5.jpg": bytes(undecodable), "9.jpg": files["9.jpg"][:middle], "12.jpg": b"<html></html>"}
    damaged = str(write_tar(tmp_path / "damaged.tar", files | bad))
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    small = PipelineOptions(pipeline=backend, shuffle_buffer=8)
    place = {"images_per_epoch": 20, "global_batch": 4, "seed": 4, "quarantine": quarantine}
    with build_stream([damaged], SPEC, small, **place) as pipeline:
        batches = list(pipeline.epoch(0))
        assert pipeline.quarantined == 3
        second = list(pipeline.epoch(1))
        assert pipeline.quarantined == 3
    with build_stream([damaged], SPEC, small, **place | {"quarantine": None}) as pipeline:
        assert_same_views(list(pipeline.epoch(1)), second)  # of a run that does not know the bad images yet
    assert_same_views(_batches([damaged], start_step=2, **options), batches[2:])
    for ours, theirs in zip(batches, reference, strict=True):
        good = [slot for slot, sample in enumerate(theirs.ids.tolist()) if sample not in (5, 9, 12)]
        assert torch.equal(ours.ids[good], theirs.ids[good])
        assert torch.equal(ours.query[good], theirs.query[good])
        assert len(ours.ids) == 4 and not set(ours.ids.tolist()) & {5, 9, 12}
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert len(lines) == 3
    assert {(line["shard"], line["key"], line["sample"]) for line in lines} == {
        (damaged, "5", 5), (damaged, "9", 9), (damaged, "12", 12)
    }  # fmt: skip
    assert all(line["cause"] and line["replaced_by"] >= 0 for line in lines)
    assert f"({damaged}, key 12) cannot be used: not an image: HTML" in caplog.text


def test_a_stream_of_bad_images_ends(tmp_path):
    tar = write_tar(tmp_path / "bad.tar", {f"{n}.jpg": b"no image" for n in range(9)})
    with pytest.raises(PipelineError, match=r"bad\.tar, key \d, is bad, and so are the 4 images tried in its place"):
        _batches([str(tar)])


def test_tars_without_images_are_an_error_and_no_endless_loop(tmp_path):
    tar = write_tar(tmp_path / "text.tar", {"a.txt": b"text"})
    with pytest.raises(StreamError, match=r"none of the 1 tars of rank 0 holds an image; .*text\.tar"):
        _batches([str(tar)])


def test_a_truncated_tar_ends_the_run_with_its_name(tars, tmp_path):
    whole = Path(tars[0]).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StreamError, match=r"cut\.tar cannot be read after its first \d+ images"):
        _batches([*tars[1:], str(cut)])


def test_a_bucket_gives_the_same_batches(tars, s3):
    store = open_store(s3)
    for tar in tars:
        store.write(tar.rpartition("/")[2], Path(tar).read_bytes())
    assert_same_views(_batches(expand(f"{s3}/{{000..004}}.tar")), _batches(tars))


def test_leaving_early_leaves_no_thread(tars):
    before = set(threading.enumerate())
    small = PipelineOptions(pipeline="torch", shuffle_buffer=8)
    with build_stream(tars, SPEC, small, images_per_epoch=10**6, global_batch=4) as pipeline:
        for _ in pipeline.epoch(0):
            break
        held = pipeline.epoch(0)
        next(held)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("pipelines")} <= before
    with pytest.raises(RuntimeError, match="closed"):
        next(held)


def test_weaker_guarantees_are_logged_once(tars, caplog):
    for rank in range(2):
        _batches(tars, rank=rank, world_size=2)
    assert caplog.text.count("streaming 5 tars") == 1
