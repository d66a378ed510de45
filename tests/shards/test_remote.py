"""A set in an object store: packing, resuming, refusing, and reading through the cache by several processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, ShardSetError, pack
from shards.packing import lock
from shards.packing.output import held
from shards.storage.base import Store
from shards.storage.store import open_store
from tests.support.pictures import gradient, jpeg


def options(src: Path, out: str, **changes) -> PackOptions:
    return PackOptions(src, out, **{"workers": 1, "shard_size": 25, **changes})


def upload(folder: Path, url: str) -> Store:
    store = open_store(url)
    for path in sorted(folder.iterdir()):
        store.write(path.name, path.read_bytes())
    return store


def contents(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.names()}


@pytest.fixture
def remote(packed, s3) -> str:
    upload(packed, s3)
    return s3


def test_packing_and_repairing_give_the_bytes_of_a_local_set(folder, packed, s3, tmp_path):
    pack(options(folder, s3, workers=2), progress=False)
    store = open_store(s3)
    local = {path.name: path.read_bytes() for path in packed.iterdir()}
    assert contents(store) == local
    assert list((tmp_path / "scratch").iterdir()) == []
    for name in ("manifest.json", "shard-000002.npy", "shard-000003.tar"):
        store.remove(name)
    with pytest.raises(ShardSetError, match="unfinished packing"):
        ShardSet(s3)
    pack(options(folder, s3), progress=False)
    assert contents(store) == local


def test_images_in_a_store_are_compared_and_none_of_a_set_in_it_is_packed(folder, packed, remote, tmp_path):
    """Images, the set that they must not be in, and the output are all in the store."""
    images, out = open_store(f"{remote}-images"), f"{remote}-out"
    for path in sorted((folder / "class 0").iterdir())[:9]:
        images.write(f"old/{path.name}", path.read_bytes())
    for number in range(12):
        images.write(f"new/{number:02d}.jpg", jpeg(gradient(90, 70, seed=1000 + number % 10)))
    flags = {"drop_duplicates": "exact", "not_in": remote, "shard_size": 4}
    made = pack(options(f"{remote}-images", out, **flags), progress=False)
    assert (made.samples, made.quarantined) == (10, 11)
    reasons = open_store(out).read("quarantine.jsonl").decode()
    assert reasons.count('"reason": "in another set: the same content as ') == 9
    assert f'"old/000.jpg", "reason": "in another set: the same content as {remote}/shard-' in reasons
    assert '{"source": "new/10.jpg", "reason": "duplicate: the same content as new/00.jpg"}' in reasons
    (tmp_path / "images").mkdir()
    for name in ("old", "new"):
        (tmp_path / "images" / name).mkdir()
        for file in images.names(name):
            (tmp_path / "images" / name / file).write_bytes(images.read(f"{name}/{file}"))
    pack(options(tmp_path / "images", tmp_path / "out", **{**flags, "not_in": packed}), progress=False)
    store = open_store(out)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(store.names())
    assert all(store.read(path.name) == path.read_bytes() for path in (tmp_path / "out").glob("*.tar"))


def test_another_set_is_refused_and_overwritten_when_asked(folder, remote, capsys):
    with pytest.raises(PackError, match="holds another set: --limit was not given, now 7"):
        pack(options(folder, remote, limit=7), progress=False)
    pack(options(folder, remote, limit=7, overwrite=True))
    assert "--overwrite: removing 27 files" in capsys.readouterr().out
    assert len(ShardSet(remote)) == 7
    assert len(open_store(remote).names()) == 7


def test_a_second_packer_is_refused_until_the_first_is_dead(folder, s3, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.1)
    monkeypatch.setattr(lock, "EXPIRE", 60.0)  # the wait ends with the first renewal
    store = open_store(s3)
    with held(store) as check:
        with pytest.raises(PackError, match=r"is being packed by process .* on "):
            pack(options(folder, s3), progress=False)
        check()
    assert store.names() == []
    monkeypatch.setattr(lock, "EXPIRE", 0.5)
    for host, process in (("another", 1), (lock.socket.gethostname(), 2**22 + 1)):
        store.write(lock.LOCK, json.dumps({"host": host, "process": process, "token": "x"}).encode())
        assert pack(options(folder, s3), progress=False).samples == 120


def test_a_packer_whose_lease_is_taken_stops(s3, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.05)
    store = open_store(s3)
    with held(store) as check:
        deadline = time.monotonic() + 60
        with pytest.raises(PackError, match="packed by process 7 on another"):
            while time.monotonic() < deadline:
                # again and again: a renewal that has just read the lease writes its own over it
                store.write(lock.LOCK, json.dumps({"host": "another", "process": 7, "token": "x"}).encode())
                check()
                time.sleep(0.05)


def test_a_whole_set_is_read_and_cached(packed, remote, monkeypatch):
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "100MB")
    with ShardSet(packed) as local, ShardSet(remote) as shard_set:
        ids = np.arange(120)
        assert [shard_set.check(i) for i in range(120)] == [local.check(i) for i in range(120)]
        assert (shard_set.sizes(ids) == local.sizes(ids)).all()
        assert shard_set.names(ids) == local.names(ids)
        assert [future.result(60) for future in shard_set.prefetch(range(5))] == [True] * 5
        store = open_store(remote)
        for name in store.names():
            if name.endswith(".tar"):
                store.remove(name)
        assert [shard_set.read(i) for i in range(120)] == [local.read(i) for i in range(120)]


def test_images_of_shards_that_do_not_fit_are_read_one_by_one(packed, remote, monkeypatch):
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "1k")
    read: list[int] = []
    with ShardSet(packed) as local, ShardSet(remote) as shard_set:
        whole = shard_set.store.read_range
        monkeypatch.setattr(shard_set.store, "read_range", lambda n, a, b: read.append(b - a) or whole(n, a, b))
        order = np.random.default_rng(0).permutation(120).tolist()
        images = [shard_set.read(i) for i in order]
        assert images == [local.read(i) for i in order]
    assert sorted(read) == sorted(len(image) for image in images)


def test_expected_shards_are_fetched_ahead(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "100MB")
    with ShardSet(remote) as shard_set:
        shard_set.expect(np.r_[np.arange(25, 45), [3, 60, 61]])
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache").glob("*/shard-000001.tar")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [path.name for path in (tmp_path / "cache").glob("*/*.tar")] == ["shard-000001.tar"]


READER = """
import sys, zlib
from pathlib import Path
import numpy as np
from shards import ShardSet
with ShardSet(sys.argv[1]) as shard_set:
    crc = 0
    for start in range(0, 120, 20):
        shard_set.expect(np.arange(start, min(120, start + 40)))
        for i in range(start, start + 20):
            crc = zlib.crc32(shard_set.check(i), crc)
    for i in np.random.default_rng(int(sys.argv[2])).permutation(120)[:40]:
        shard_set.check(int(i))
    print(crc)
"""


def test_two_processes_share_a_cache_smaller_than_the_set(packed, remote, tmp_path, monkeypatch):
    with ShardSet(packed) as local:
        bound = int(local.manifest.bytes * 0.5)
        crc = 0
        for i in range(120):
            crc = zlib.crc32(local.read(i), crc)
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", str(bound))
    line = [sys.executable, "-c", READER, remote]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda n: subprocess.run([*line, n], capture_output=True, text=True), ("1", "2")))
    assert [(run.stdout, run.stderr) for run in runs] == [(f"{crc}\n", "")] * 2
    files = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*") if path.suffix != ".part"]
    assert 0 < sum(files) <= bound


def test_a_missing_set_is_named(s3, remote):
    with pytest.raises(ShardSetError, match="no shard set at s3://bucket/nothing: no such folder"):
        ShardSet("s3://bucket/nothing")
    with pytest.raises(ShardSetError, match="Protocol not known"):
        ShardSet("nonsense://x")


def test_verify_and_info_read_a_set_in_a_store(remote, cli):
    store = open_store(remote)
    for arguments in (["verify", remote, "--workers", "2"], ["verify", remote, "--decode"]):
        done = cli(*arguments)
        assert done.returncode == 0
        assert "120 images in 5 shards: all as packed" in done.stdout
    done = cli("info", remote)
    assert done.returncode == 0
    assert "120 in 5 shards" in done.stdout
    with ShardSet(remote) as shard_set:
        [offset] = shard_set.rows(np.array([27]))["offset"].tolist()
        _, key = shard_set.locate(27)
    tar = bytearray(store.read("shard-000001.tar"))
    tar[offset + 200] ^= 0xFF
    store.write("shard-000001.tar", bytes(tar))
    for arguments in (["verify", remote], ["verify", remote, "--decode"]):
        done = cli(*arguments)
        assert done.returncode == 1
        assert "shard-000001" in done.stdout
        assert key in done.stdout
    store.remove("shard-000004.idx")
    done = cli("verify", remote)
    assert done.returncode == 1
    assert "shard-000004.idx" in done.stdout
    done = cli("verify", f"{remote}/nothing")
    assert done.returncode == 2
    assert "no shard set" in done.stderr


def test_a_damaged_index_in_the_cache_is_fetched_again_and_one_in_the_store_is_named(remote, tmp_path):
    with ShardSet(remote) as shard_set:
        expected = shard_set.rows(np.arange(120))
    cached = next((tmp_path / "cache").glob("*/shard-000001.npy"))
    cached.write_bytes(bytes(cached.stat().st_size))  # as a crash of the machine may leave it
    with ShardSet(remote) as shard_set:
        assert np.array_equal(shard_set.rows(np.arange(120)), expected)
    open_store(remote).write("shard-000001.npy", b"rubbish")
    cached.write_bytes(b"rubbish")
    with ShardSet(remote) as shard_set, pytest.raises(ShardSetError, match=rf"{remote}/shard-000001\.npy is damaged"):
        shard_set.read(30)
