"""A set on a web server, read through a cache that fails, and from servers that garble their answers."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards import SampleError, ShardSet, ShardSetError
from shards.errors import StoreError
from tests.support.faulty import Faults, FaultyServer
from tests.support.serving import serving


@pytest.fixture
def server(packed: Path) -> Iterator[FaultyServer]:
    files = {f"/{path.name}": path.read_bytes() for path in packed.iterdir()}
    with serving(FaultyServer(Faults(), files)) as running:
        yield running


@pytest.fixture(autouse=True)
def folder_of_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "100MB")
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "0")
    return tmp_path / "cache"


def images(place: str | Path) -> list[bytes]:
    with ShardSet(place) as shard_set:
        data = [shard_set.check(number) for number in range(0, 120, 6)]
        assert all(future.result(60) in (True, False) for future in shard_set.prefetch(range(5)))
        assert [shard_set.check(number) for number in range(0, 120, 6)] == data
        return data


def test_a_full_disk_costs_one_warning_and_no_image(packed, server, folder_of_cache, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # of this process: less than a tar, more than an index
    try:
        found = images(server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found == images(packed)
    assert (
        caplog.text.count("the cache cannot be used: File too large; images are read from the store; free space") == 1
    )
    assert list(folder_of_cache.glob("*/*.tar*")) == []


def test_a_cache_folder_that_cannot_be_made_is_done_without(packed, server, folder_of_cache, monkeypatch, caplog):
    monkeypatch.setenv("FASTMOCO_CACHE", "/proc/none")  # mkdir fails there, whoever asks
    assert images(server.url) == images(packed)
    assert caplog.text.count("there is no cache: ") == 1
    folder_of_cache.mkdir()
    (folder_of_cache / "file").touch()
    monkeypatch.setenv("FASTMOCO_CACHE", str(folder_of_cache / "file"))
    assert images(server.url) == images(packed)


def test_a_copy_damaged_in_the_cache_is_dropped_and_read_again(packed, server, folder_of_cache, caplog):
    expected = images(server.url)
    [tar] = folder_of_cache.glob("*/shard-000001.tar")
    [index] = folder_of_cache.glob("*/shard-000002.npy")
    tar.write_bytes(bytes(tar.stat().st_size))  # as a crash of the machine may leave them
    index.write_bytes(b"")
    assert images(server.url) == expected == images(packed)
    assert "a part of shard-000001.tar was damaged in the cache or on its way, and is read again" in caplog.text
    tar.write_bytes(tar.read_bytes()[:5000])
    assert images(server.url) == expected


def test_a_tar_that_differs_in_the_store_is_not_cached_and_costs_its_image(packed, server, folder_of_cache, caplog):
    with ShardSet(packed) as local:
        place = int(local.rows(np.array([30]))["offset"][0]) + 300
    tar = bytearray(server.files["/shard-000001.tar"])
    tar[place] ^= 1
    server.files["/shard-000001.tar"] = bytes(tar)  # type: ignore[index]
    with ShardSet(server.url) as shard_set:
        for _ in range(3):
            with pytest.raises(SampleError, match="the bytes differ from those packed"):
                shard_set.check(30)
            assert shard_set.check(31)
            assert [future.result(60) for future in shard_set.prefetch([1, 2])] == [False, True]
    assert caplog.text.count("shard-000001.tar is not kept in the cache: its SHA-256 is not that of the manifest") == 1
    assert not list(folder_of_cache.glob("*/shard-000001.tar*"))


class Garbling(FaultyServer):
    """Answers of one kind that are wrong in their bytes alone: every third for `path`, or all of them."""

    kind, path, every, asked = "", "", 3, 0

    def answer(self, handler, body):
        status, headers, data = super().answer(handler, body)
        if not self.kind or self.path not in handler.path:
            return status, headers, data
        self.asked += 1
        if self.asked % self.every:
            return status, headers, data
        if self.kind.isdigit():
            return int(self.kind), [("Content-Length", "0")], b""
        data = {"flip": data[:9] + b"\0" + data[10:], "short": data[: len(data) // 2], "page": b"<html>log in"}[
            self.kind
        ]
        headers = [(name, value) for name, value in headers if not name.startswith("Content-")]
        return 200 if self.kind == "page" else status, [*headers, ("Content-Length", str(len(data)))], data


@pytest.fixture
def garbling(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Garbling]:
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "1")
    monkeypatch.setattr("shards.storage.remote.pauses", lambda retries: (0.001,) * retries)
    monkeypatch.setattr("shards.storage.remote_access.pauses", lambda retries: (0.001,) * retries)
    monkeypatch.setattr("shards.storage.retry._SLACK", 60.0)  # a busy machine takes a second for a few requests
    with serving(Garbling(Faults(), server.files)) as running:
        yield running


@pytest.mark.parametrize("kind", ["500", "403", "401", "flip", "short", "page"])
def test_answers_that_are_wrong_now_and_then_cost_no_image(packed, garbling, monkeypatch, kind):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "60")
    garbling.kind = kind
    assert images(garbling.url) == images(packed)
    assert garbling.asked > 50


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("403", "HTTP 403 Forbidden, for "),
        ("401", "HTTP 401 Unauthorized, for "),
        ("short", r"ends after [\d,]+ of [\d,]+ bytes at [\d,]+, for "),
        ("page", r"ends after \d+ of [\d,]+ bytes at [\d,]+, for "),
        ("404", None),
    ],
)
def test_answers_that_stay_wrong_stop_with_the_cause(garbling, monkeypatch, kind, cause):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "3")
    garbling.kind, garbling.path, garbling.every = kind, "shard-000001.tar", 1
    told = rf"^cannot read {garbling.url}/shard-000001\.tar: {cause}" if cause else r"shard-000001\.tar is missing"
    with ShardSet(garbling.url) as shard_set, pytest.raises(StoreError, match=told):
        shard_set.check(30)


def test_a_set_that_may_not_be_read_is_refused_soon(garbling, monkeypatch):
    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "3600")
    garbling.kind, garbling.every = "403", 1
    with pytest.raises(ShardSetError, match=r"manifest\.json: HTTP 403 Forbidden"):
        ShardSet(garbling.url)
    assert garbling.asked == 3
