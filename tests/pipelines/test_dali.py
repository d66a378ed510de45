"""The DALI backend: several batches in the graph at once, bad images among them, and what is held and given back."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.demo.made import make_images
from pipelines import PipelineError, PipelineOptions, ViewSpec, build, draw
from pipelines._threads import worker_pool
from pipelines.contract import BadImages
from pipelines.decode import decode
from shards import PackOptions, ShardSet, pack
from tests.support.views import assert_same_views

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")
pytestmark = pytest.mark.dali

SPEC = ViewSpec.moco_v2(32)
BATCH = 40
"""Enough for DALI to parse headers in its threads and in the caller at once."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dali")
    make_images(folder / "images", classes=2, per_class=120, size=(48, 64), seed=0)
    pack(PackOptions(src=folder / "images", out=folder / "set", workers=1, shard_size=64), progress=False)
    return folder / "set"


@pytest.fixture
def shards(packed):
    with ShardSet(packed) as opened:
        yield opened


@pytest.fixture
def backend():
    from pipelines.dali import DaliBackend

    pool = worker_pool(2, "pipelines-test")
    made = DaliBackend(SPEC, BATCH, torch.device("cpu"), pool, 2)
    yield made
    made.close()
    pool.shutdown()


def _pipeline(shards, name="dali", **options):
    options = PipelineOptions(pipeline=name, threads=2, **options)
    return build(shards, SPEC, options, global_batch=BATCH, seed=4)


def _batches(shards, name="dali", epochs=(0,), **options):
    with _pipeline(shards, name, **options) as pipeline:
        return [batch for epoch in epochs for batch in pipeline.epoch(epoch)]


def _inputs(shards, first=0, count=BATCH):
    """Encoded images, their sizes, and parameters."""
    ids = np.arange(first, first + count)
    sizes = shards.sizes(ids)
    params = tuple(draw(SPEC, seed=4, epoch=0, ids=ids, sizes=sizes, view=view) for view in (0, 1))
    return [shards.read(int(sample)) for sample in ids], sizes, params


def _with_junk(data):
    """Two bytes before the scan that libjpeg passes over and DALI's parser does not."""
    scan = data.index(b"\xff\xda")
    return data[:scan] + bytes(2) + data[scan:]


def _damage(shards, monkeypatch, causes):
    """Damage images that their checksums do not show: samples by what is done to the bytes."""
    check = shards.check
    changes = {
        "header": lambda data: data[:100] + b"\xff\xd9",
        "half": lambda data: data[: len(data) // 2],
        "junk": _with_junk,
    }
    monkeypatch.setattr(
        shards, "check", lambda sample: changes.get(causes.get(sample, ""), lambda data: data)(check(sample))
    )


def test_batches_in_flight_equal_those_made_alone(shards, monkeypatch):
    from pipelines.dali import DaliBackend

    depth = DaliBackend.depth
    assert depth > 1
    clean = _batches(shards)
    places = {(1, 5): "header", (1, 39): "half", (2, 0): "half", (2, 7): "header", (5, 20): "half"}
    odd = {int(clean[step].ids[slot]): "junk" for step, slot in [(1, 6), (3, 0), (3, 39)]}  # what DALI alone rejects
    _damage(shards, monkeypatch, {int(clean[step].ids[slot]): how for (step, slot), how in places.items()} | odd)
    monkeypatch.setattr(DaliBackend, "depth", 1)
    alone = _batches(shards, epochs=(0, 1))
    monkeypatch.setattr(DaliBackend, "depth", depth)
    assert_same_views(_batches(shards, epochs=(0, 1), prefetch=3), alone)
    for step, (batch, whole) in enumerate(zip(alone, clean, strict=False)):
        same = batch.ids == whole.ids
        assert (~same).nonzero().ravel().tolist() == sorted(slot for of, slot in places if of == step)
        assert torch.equal(batch.query[same], whole.query[same])
    with _pipeline(shards) as pipeline:
        assert_same_views(list(pipeline.epoch(0, start_step=2)), alone[2:6])
        for expected, batch in zip(alone[6:9], pipeline.epoch(1), strict=False):
            assert_same_views([batch], [expected])  # and leaves in the middle
        assert_same_views(list(pipeline.epoch(0)), alone[:6])
        assert pipeline.quarantined == 5  # however often they were met


def _dali_threads():
    """Ids of DALI's threads; a thread that has been joined may still be listed for a moment."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if Path(task, "comm").read_text().startswith("[DALI]"):
                found.add(task.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_closing_in_the_middle_leaves_no_thread_and_no_graph(shards):
    gc.collect()
    before = _dali_threads()
    with _pipeline(shards, prefetch=3) as pipeline:
        graph = weakref.ref(pipeline._maker._graph._pipe)
        left = pipeline.epoch(0)
        next(left)
        assert _dali_threads() - before
    gc.collect()
    assert graph() is None
    deadline = time.monotonic() + 60
    while left_over := _dali_threads() - before:
        assert time.monotonic() < deadline, left_over
        time.sleep(0.01)
    assert not any(thread.name == "pipelines-batches" for thread in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        next(left)


def test_images_are_not_copied_and_are_held_until_their_run_has_ended(shards, backend, monkeypatch):
    from pipelines import dali

    encoded, sizes, params = _inputs(shards)
    expected = [view.clone() for view in backend.views(encoded, sizes, params)]
    freed = []

    images = [np.frombuffer(data, np.uint8).copy() for data in encoded]
    for data in images:
        weakref.finalize(data, lambda: freed.append(threading.get_ident()))
    addresses = {data.ctypes.data for data in images}
    monkeypatch.setattr(dali, "parsed_size", lambda _: (48, 64))  # it takes bytes alone, which cannot be watched
    backend.submit(images, sizes, params)
    assert {image.data_ptr() for image in backend._graph._running[0]} == addresses  # DALI reads the very bytes
    del images, data
    gc.collect()
    rubbish = [bytes(len(data)) for data in encoded]  # would take the place of memory that was given back
    assert not freed
    views = backend.collect()
    assert all(torch.equal(view, one) for view, one in zip(views, expected, strict=True))
    for first in (0, 40, 80):  # their turn to be held
        backend.views(*_inputs(shards, first))
    gc.collect()
    assert len(freed) == BATCH
    assert set(freed) == {threading.get_ident()}  # not one of them in a thread of DALI's
    assert len(rubbish) == BATCH


@pytest.fixture
def runs(backend, monkeypatch):
    """The images of each run of the graph."""
    started = []
    start = backend._graph.start
    monkeypatch.setattr(
        backend._graph, "start", lambda encoded, params: (started.append(encoded), start(encoded, params))
    )
    return started


def test_an_image_that_dalis_parser_rejects_is_given_as_pixels(shards, backend, runs):
    encoded, sizes, params = _inputs(shards)
    expected = [view.clone() for view in backend.views(encoded, sizes, params)]
    odd = [*encoded[:17], _with_junk(encoded[17]), *encoded[18:]]
    views = backend.views(odd, sizes, params)
    assert all(torch.equal(view, one) for view, one in zip(views, expected, strict=True))
    assert runs[1][17].startswith(b"P6\n64 48\n255\n") and len(runs) == 2


def test_an_image_that_dalis_decoder_rejects_is_given_to_it_once(shards, backend, runs, monkeypatch, caplog):
    from pipelines import dali

    encoded, sizes, params = _inputs(shards)
    half = encoded[17][: len(encoded[17]) // 2]
    odd = [*encoded[:17], half, *encoded[18:]]
    # a decoder that DALI's is stricter than
    monkeypatch.setattr(dali, "decode", lambda data, size: decode(encoded[17] if data == half else data, size))
    for _ in range(2):  # the second is in the graph while the first fails
        backend.submit(odd, sizes, params)
    graph = backend._graph._pipe
    for _ in range(2):
        views = backend.collect()
        assert all(len(view) == BATCH for view in views)
    backend.views(odd, sizes, params)
    assert [half in images for images in runs] == [True, True, False, False, False]
    assert backend._graph._pipe is graph  # none was built for it
    (line,) = (record.getMessage() for record in caplog.records)
    assert (
        line
        == "DALI rejects an image that the CPU decodes, and is given its pixels instead: Failed to decode sample #17 :"
    )


def test_a_batch_that_fails_with_sound_images_names_what_failed(shards, backend):
    encoded, sizes, params = _inputs(shards)
    box = params[0].box.copy()
    box[[3, 30]] = [0, 0, 300, 300]
    query = params[0].replaced(np.array([3, 30]), params[0].take(np.array([3, 30])))
    object.__setattr__(query, "box", box)
    with pytest.raises(RuntimeError, match="out of bounds"):
        backend.views(encoded, sizes, (query, params[1]))
    assert all(len(view) == BATCH for view in backend.views(encoded, sizes, params))


def test_an_image_of_another_size_than_the_index_says_is_bad(shards, backend):
    encoded, sizes, params = _inputs(shards)
    sizes = sizes.copy()
    sizes[4] = (50, 64)
    with pytest.raises(BadImages, match="is 48x64 pixels, but the index says 50x64"):
        backend.views(encoded, sizes, params)


def test_a_fault_of_the_device_is_not_blamed_on_an_image(shards, backend, monkeypatch):
    from pipelines.dali_graph import Graph

    def fail(message):
        def finish(self):
            self._ended.append(self._running.popleft())
            self._pipe.outputs()
            raise RuntimeError(message)

        monkeypatch.setattr(Graph, "finish", finish)

    fail("Critical error in pipeline:\nCUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        backend.views(*_inputs(shards))
    fail("Critical error in pipeline:\nCan't allocate 1048576 bytes on device 0.")
    with pytest.raises(PipelineError, match="out of memory: use a smaller batch"):
        backend.views(*_inputs(shards))
    fail("Critical error in pipeline:\nsomething that no image explains")
    with pytest.raises(RuntimeError, match="no image explains"):
        backend.views(*_inputs(shards, count=4))


_HEAD = """Critical error in pipeline:
Error in CPU operator `nvidia.dali.fn.decoders.image`,
which was used in the pipeline definition with the following traceback:

  File "dali_graph.py", line 20, in pipe
    images = fn.decoders.image(encoded)

encountered:

"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # of DALI 2.4 and nvImageCodec 0.9: from their runs on a CPU, and from the strings of their libraries
        ("nvImageCodec failure: '#3'", "image"),  # NVIMGCODEC_STATUS_BAD_CODESTREAM
        ("nvImageCodec failure: '#4'", "image"),  # ..._CODESTREAM_UNSUPPORTED
        ("Failed to decode sample #4 : ", "image"),
        ("nvImageCodec failure: '#5'", "memory"),  # ..._ALLOCATOR_FAILURE
        ("nvImageCodec failure: '#15'", "memory"),
        ("nvImageCodec failure: '#6'", "device"),  # ..._EXECUTION_FAILED
        ("nvImageCodec failure: '#21'", "device"),  # ..._CUDA_CALL_ERROR
        ("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory", "memory"),
        ("CUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access was encountered", "device"),
        ("CUDA driver API error CUDA_ERROR_LAUNCH_FAILED (719):\nunspecified launch failure", "device"),
        ("CUDA Runtime failure: '#700'", "device"),
        ("Unhandled CUDA error: cudaErrorECCUncorrectable", "device"),
        ("CUDA allocation failed", "memory"),
        ("Can't allocate 1048576 bytes on device 0.", "memory"),
        ("Can't allocate 1048576 bytes on host.", "memory"),
        ("std::bad_alloc", "memory"),
        ("A nvml internal driver error occurred", "device"),
    ],
)
def test_a_message_of_dali_is_an_images_a_devices_or_memorys(backend, text, expected):
    from pipelines import dali

    error = RuntimeError(f"{_HEAD}{text}\nCurrent pipeline object is no longer valid.")
    found = "image"
    try:
        backend._raise_fault(error)
    except PipelineError as raised:
        assert "out of memory" in str(raised)
        found = "memory"
    except RuntimeError as raised:
        assert raised is error
        found = "device"
    assert found == expected
    assert dali._cause(error) == text.splitlines()[0].strip()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:2] + b"\xff\xe5\0\1" + data[2:], lambda data: data[:2] + b"\xff\xe5\0\0" + data[2:],
        lambda data: data[:2] + b"\xff\0" + data[2:], lambda data: data[:2] + b"\xff\xd0" + data[2:], _with_junk,
        lambda data: data[:2] + b"\xff\xe1\0\7Exif\0" + data[2:], lambda data: data[:2] + data, lambda data: data[:60],
        lambda data: b"", lambda data: b"GIF89a", lambda data: data[:2] + b"\0\0" + data[2:],
    ],
)  # fmt: skip
def test_headers_that_dalis_parser_rejects_are_known_without_it(shards, change):
    from pipelines.dali_input import parsed_size

    data = shards.read(0)
    assert parsed_size(data) == parsed_size(data[:2] + b"\xff" + data[2:]) == (48, 64)
    assert parsed_size(change(data)) is None


def test_reading_goes_on_while_dali_decodes(shards, backend):
    """`submit` returns before the run has ended."""
    from pipelines.dali import DaliBackend

    big = ViewSpec.moco_v2(224)
    pool = worker_pool(1, "pipelines-test")
    slow = DaliBackend(big, BATCH, torch.device("cpu"), pool, 1)
    encoded, sizes, params = _inputs(shards)
    shares = []
    for _ in range(10):
        begin = time.perf_counter()
        slow.submit(encoded, sizes, params)
        submitted = time.perf_counter()
        slow.collect()
        shares.append((submitted - begin) / (time.perf_counter() - begin))
    slow.close()
    pool.shutdown()
    assert min(shares) < 0.5  # a `submit` that waits takes all of the time every time, on a busy machine as well


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_in_flight_on_the_gpu_equal_those_made_alone(shards, monkeypatch, dtype):
    from pipelines.dali import DaliBackend

    def batches():
        options = PipelineOptions(pipeline="dali", threads=2, prefetch=3)
        with build(shards, SPEC, options, global_batch=BATCH, seed=4, device="cuda", dtype=dtype) as pipeline:
            return list(pipeline.epoch(0))

    depth = DaliBackend.depth
    clean = batches()
    _damage(shards, monkeypatch, {int(clean[1].ids[5]): "header", int(clean[2].ids[7]): "half"})
    monkeypatch.setattr(DaliBackend, "depth", 1)
    alone = batches()
    monkeypatch.setattr(DaliBackend, "depth", depth)
    assert_same_views(batches(), alone)
    assert [step for step in range(6) if not torch.equal(alone[step].ids, clean[step].ids)] == [1, 2]
    assert alone[0].query.dtype is dtype and alone[0].query.is_contiguous(memory_format=torch.channels_last)
