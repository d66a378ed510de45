"""LMDB databases with an image file for each key, as lmdb writes them."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet
from shards.packing.preview import preview
from shards.packing.sources.lmdbs import LmdbSource
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set

COUNT = 30


def write(place: Path, values: dict[bytes, bytes], subdir: bool = True) -> Path:
    with lmdb.open(str(place), map_size=1 << 26, subdir=subdir) as database, database.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return place


@pytest.fixture(scope="module")
def images() -> dict[bytes, bytes]:
    """Keys with a folder in front, of two classes, and neither an extension nor an order."""
    return {b"%d/%x" % (n % 2, n * 7919 % 4096): jpeg(gradient(40 + n, 32, seed=n)) for n in range(COUNT)}


@pytest.fixture(scope="module")
def database(images, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("database") / "train_lmdb"
    return write(place, {**images, b"__len__": pickle.dumps(COUNT)})


@pytest.fixture(scope="module")
def packed(database, tmp_path_factory) -> Path:
    return pack_set(database, tmp_path_factory.mktemp("packed") / "set", shard_size=8, workers=1)


def found(out: Path) -> dict[str, bytes]:
    with ShardSet(out) as opened:
        assert np.all(opened.labels(np.arange(len(opened))) == -1)
        return {opened.source(i): opened.read(i) for i in range(len(opened))}


def test_every_value_is_an_image_named_after_its_key_without_a_label(images, packed):
    assert found(packed) == {f"data.mdb/{key.decode()}": data for key, data in images.items()}


def test_any_number_of_workers_writes_the_same_bytes_also_from_a_folder_that_is_read_only(database, packed, tmp_path):
    (database / "lock.mdb").unlink(missing_ok=True)
    database.chmod(0o555)
    try:
        assert same_files(packed, pack_set(database, tmp_path / "set", shard_size=8, workers=2))
        assert [path.name for path in database.iterdir()] == ["data.mdb"]
    finally:
        database.chmod(0o755)


@pytest.mark.long
def test_ray_writes_the_same_bytes(database, packed, tmp_path):
    out = pack_set(database, tmp_path / "set", shard_size=8, workers=2, executor="ray")
    assert same_files(packed, out)


def test_shards_that_are_missing_are_packed_again(database, packed, tmp_path):
    out = pack_set(database, tmp_path / "set", shard_size=8, workers=1)
    for path in out.glob("shard-000001.*"):
        path.unlink()
    (out / "manifest.json").unlink()
    assert same_files(packed, pack_set(database, out, shard_size=8, workers=1))


def test_a_single_file_and_labels_from_the_keys(images, tmp_path):
    write(tmp_path / "a.lmdb", images, subdir=False)
    out = pack_set(tmp_path / "a.lmdb", tmp_path / "set", label_from="folder")
    with ShardSet(out) as opened:
        labels = opened.labels(np.arange(COUNT))
        assert all(opened.source(i).startswith(f"a.lmdb/{labels[i]}/") for i in range(COUNT))


def test_a_database_that_is_replaced_is_read_anew(images, tmp_path):
    place = write(tmp_path / "a", dict(list(images.items())[:2]))
    assert len(found(pack_set(place, tmp_path / "two", workers=1))) == 2
    (place / "data.mdb").unlink()
    write(place, dict(list(images.items())[:3]))
    assert len(found(pack_set(place, tmp_path / "three", workers=1))) == 3
    lmdb.open(str(place), readonly=True).close()  # which would fail if packing had left it open


def test_values_that_are_no_image_are_left_out_by_key_and_pickles_refused(images, tmp_path):
    key, data = next(iter(images.items()))
    place = write(tmp_path / "a", {key: data, b"num-samples": b"1", b"cut": data[:-300], b"\0\0\1": data})
    out = pack_set(place, tmp_path / "set")
    assert list(found(out)) == [f"data.mdb/{key.decode()}"]
    reasons = {
        line["source"]: line["reason"] for line in map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    }
    assert sorted(reasons) == ["data.mdb/\\x00\\x00\\x01", "data.mdb/cut", "data.mdb/num-samples"]
    assert reasons["data.mdb/\\x00\\x00\\x01"] == "bad name: it holds a zero byte"
    pickled = write(tmp_path / "b", {b"000": data, b"001": pickle.dumps((data, 3))})
    with pytest.raises(PackError, match=r"the value of key '001' is a pickle, which is not read, .*; write a database"):
        pack_set(pickled, tmp_path / "none")
    datum = b"\x08\x03\x10\x80\x02\x18\x80\x02\x22" + data
    with pytest.raises(PackError, match="the value of key '00_a' is a Datum of Caffe, not an image file; write a data"):
        pack_set(write(tmp_path / "c", {b"00_a": datum}), tmp_path / "none")


def test_a_damaged_database_is_named(database, tmp_path):
    whole = (database / "data.mdb").read_bytes()
    for content, cause in ((whole[: len(whole) // 2], r"truncated: [\d,]+ of [\d,]+ bytes"), (b"no" * 9999, "INVALID")):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "data.mdb").write_bytes(content)
        with pytest.raises(PackError, match=rf"cannot read --src .*data\.mdb: the database is damaged \(.*{cause}"):
            pack_set(tmp_path / "a", tmp_path / "set")


def test_a_dry_run_and_what_is_missing(database, tmp_path, monkeypatch):
    plan, lines = preview(PackOptions(database, tmp_path / "set"))
    assert plan.images == COUNT and "(lmdb), 30 images" in "\n".join(lines)
    with pytest.raises(PackError, match=r"--src s3://bucket/a\.lmdb: LMDB maps its file into memory; copy the"):
        LmdbSource("s3://bucket/a.lmdb")
    copy = tmp_path / "a.lmdb"
    copy.write_bytes((database / "data.mdb").read_bytes())
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(PackError, match=r"needs lmdb: pip install 'fastmoco\[lmdb\]'"):
        pack_set(copy, tmp_path / "set")
    assert not os.path.exists(tmp_path / "set" / "manifest.json")
