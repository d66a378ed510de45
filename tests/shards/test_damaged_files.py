"""Every file of a shard set, damaged in every way: one error that names the file and says how to repair it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, ShardSetError, pack
from shards.errors import UserError
from shards.foreign.indexing import index_tars
from shards.format.index import ROW
from shards.format.writer import read_record
from shards.storage.local import LocalStore
from tests.support.folders import same_files
from tests.support.sets import pack_set


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def npy(rows: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows, **options)
    return buffer.getvalue()


def changed(field: str, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        rows = np.load(io.BytesIO(data))
        rows[field][3] = value
        return npy(rows)

    return change


def other_type(data: bytes) -> bytes:
    return npy(np.load(io.BytesIO(data)).astype([(name, "<i8") for name in ROW.names or ()]))


INDEX_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-30],
    "truncated in the header": lambda data: data[:40],
    "garbage": lambda data: b"rubbish" * 100,
    "zero bytes": lambda data: bytes(len(data)),
    "another type": other_type,
    "floats": lambda data: npy(np.zeros(25)),
    "a pickle": lambda data: npy(np.array([None] * 25, object), allow_pickle=True),
    "too few rows": lambda data: npy(np.load(io.BytesIO(data))[:20]),
    "an offset beyond the tar": changed("offset", 1 << 60),
    "an offset that wraps": changed("offset", (1 << 64) - 1),
    "no width": changed("width", 0),
    "a label that is no class": changed("label", 3),
    "a negative label": changed("label", -2),
}
READS: dict[str, Callable[[ShardSet], object]] = {
    "read": lambda found: found.read(30),
    "check": lambda found: found.check(30),
    "sizes": lambda found: found.sizes(np.array([110, 30])),
    "labels": lambda found: found.labels(np.arange(120)),
    "rows": lambda found: found.rows(np.array([30])),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
def test_a_damaged_index_is_named_wherever_it_is_read(copy, cli, folder, packed, damage):
    path = copy / "shard-000001.npy"
    path.write_bytes(INDEX_DAMAGE[damage](path.read_bytes()))
    for read in READS.values():
        with pytest.raises(ShardSetError, match=rf"^{path} is damaged: .*; remove {path.name} and run the") as caught:
            read(ShardSet(copy))
        assert "\n" not in str(caught.value)
        assert caught.value.one_rank
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert len(ShardSet(copy).read(24)) > 0, "other shards are read"
    done = cli("info", copy)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fastmoco-shard: {path} is damaged: ")
    done = cli("verify", copy, "--workers", 1)
    assert done.returncode == 1
    assert "shard-000001.npy" in done.stdout
    path.unlink()  # the remedy
    pack(PackOptions(folder, copy, workers=1, shard_size=25), progress=False)
    assert same_files(copy, packed)


def test_a_missing_index_is_named(copy, folder, packed):
    (copy / "shard-000001.npy").unlink()
    for read in READS.values():
        with pytest.raises(ShardSetError, match=r"cannot read .*/shard-000001\.npy: No such file .*; run the fastmoco"):
            read(ShardSet(copy))
    pack(PackOptions(folder, copy, workers=1, shard_size=25), progress=False)
    assert same_files(copy, packed)


def test_the_damaged_index_of_an_indexed_tar_is_repaired_by_indexing_again(packed, tmp_path):
    shutil.copy(packed / "shard-000000.tar", tmp_path / "a.tar")
    index_tars(tmp_path, workers=1, say=lambda text: None)
    (tmp_path / "a.npy").write_bytes(b"rubbish")
    with pytest.raises(ShardSetError, match=rf"a\.npy is damaged: .* fastmoco index {tmp_path} --overwrite"):
        ShardSet(tmp_path).read(0)
    index_tars(tmp_path, workers=1, overwrite=True, say=lambda text: None)
    assert ShardSet(tmp_path).read(0)


JSON_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:200],
    "garbage": lambda data: b"\xff\xfe rubbish",
    "a list": lambda data: b"[1, 2]",
    "text": lambda data: b'"text"',
    "null": lambda data: b"null",
    "nested": lambda data: b"[" * 100_000,
    "no fields": lambda data: b"{}",
    "samples that are text": lambda data: data.replace(b'"samples": 25', b'"samples": "25"'),
    "a negative number": lambda data: data.replace(b'"samples": 25', b'"samples": -25'),
    "a name that is a number": lambda data: data.replace(b'"name": "shard-000001"', b'"name": 1'),
    "a hash that is null": lambda data: data.replace(b'"index_sha256": "', b'"index_sha256": null, "x": "'),
}


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_a_damaged_manifest_is_one_error_and_a_rerun_repairs_it(copy, cli, folder, packed, damage):
    path = copy / "manifest.json"
    path.write_bytes(JSON_DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ShardSetError, match=rf"^{path} (is damaged|has schema)"):
        ShardSet(copy)
    for name in ("info", "verify"):
        done = cli(name, copy)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
    pack(PackOptions(folder, copy, workers=1, shard_size=25), progress=False)
    assert same_files(copy, packed)


@pytest.mark.parametrize("field", ["samples", "bytes", "classes", "options", "source", "plan", "made_by", "records"])
@pytest.mark.parametrize("value", [None, 1.5, [[1]], {"a": 1}])
def test_a_manifest_with_a_field_of_another_type(copy, field, value):
    values = json.loads((copy / "manifest.json").read_bytes())
    if type(values[field]) is type(value):
        pytest.skip("of the right type")
    (copy / "manifest.json").write_text(json.dumps({**values, field: value}))
    with pytest.raises(ShardSetError, match=r"manifest\.json is damaged"):
        ShardSet(copy)


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_a_damaged_record_is_reported_and_its_shard_packed_again(copy, cli, folder, packed, damage):
    path = copy / "shard-000001.json"
    path.write_bytes(JSON_DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ShardSetError, match=r"shard-000001\.json is damaged .*run fastmoco pack again"):
        read_record(LocalStore(copy), 1)
    done = cli("verify", copy, "--workers", 1)
    assert done.returncode == 1
    assert "shard-000001.json: damaged: " in done.stdout
    pack(PackOptions(folder, copy, workers=1, shard_size=25), progress=False)
    assert same_files(copy, packed)


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_a_damaged_plan_is_made_again(copy, folder, packed, damage):
    (copy / "manifest.json").unlink()
    (copy / "packing.partial").mkdir()
    plan = b'{"options": {"seed": 0}, "source": {}, "classes": [], "samples": 25, "name": "shard-000001"}' + b" " * 200
    (copy / "packing.partial" / "plan.json").write_bytes(JSON_DAMAGE[damage](plan))
    pack(PackOptions(folder, copy, workers=1, shard_size=25), progress=False)
    assert same_files(copy, packed)


@pytest.mark.parametrize("name", ["a.json", "a.npy", "classes"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "a list", "no fields", "nested"])
def test_damage_in_an_unfinished_indexing_is_mended_or_named(packed, tmp_path, name, damage):
    shutil.copy(packed / "shard-000000.tar", tmp_path / "a.tar")
    shutil.copy(packed / "shard-000001.tar", tmp_path / "b.tar")

    def stop(text: str) -> None:
        if text.startswith("1 of 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_tars(tmp_path, workers=1, say=stop)
    (tmp_path / "indexing.partial" / name).write_bytes(JSON_DAMAGE[damage](b""))
    try:
        manifest = index_tars(tmp_path, workers=1, say=lambda text: None)
    except PackError as error:
        assert name == "a.npy"
        assert f"remove {tmp_path / 'indexing.partial'} and run the same command with --overwrite" in str(error)
        shutil.rmtree(tmp_path / "indexing.partial")
        manifest = index_tars(tmp_path, workers=1, say=lambda text: None, overwrite=True)
    assert manifest.samples == 50


@pytest.mark.parametrize("line", ["", "{", "[]", "null", '{"reason": 1}', '{"source": "a"}', '"x"'])
def test_a_damaged_quarantine_costs_info_its_causes_alone(copy, cli, line):
    values = json.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_text(json.dumps({**values, "quarantined": 1}))
    (copy / "quarantine.jsonl").write_text(line + "\n")
    done = cli("info", copy)
    assert done.returncode == 0
    assert "left out" in done.stdout


def test_a_label_beyond_the_classes_does_not_end_a_rerun(copy, cli, folder, packed):
    """Nothing is left to do, so the classes without an image are looked for in the files that are there."""
    data = bytearray((copy / "shard-000000.npy").read_bytes())
    data[-7] = 7  # the second byte of the last row's label
    (copy / "shard-000000.npy").write_bytes(data)
    pack_set(folder, copy, shard_size=25)
    assert "shard-000000.npy key 000000000024: row is" in cli("verify", copy, "--workers", 1).stdout


def test_verify_names_classes_that_the_manifest_does_not_have(packed, tmp_path, cli):
    shutil.copy(packed / "shard-000000.tar", tmp_path / "a.tar")
    index_tars(tmp_path, workers=1, say=lambda text: None)
    values = json.loads((tmp_path / "manifest.json").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps({**values, "classes": ["cat", "dog"]}))
    (tmp_path / "a.npy").write_bytes(b"rubbish")
    done = cli("verify", tmp_path, "--workers", 1)
    assert done.returncode == 1
    assert "manifest.json: has no class for a label of a.tar" in done.stdout


def test_all_errors_of_the_package_are_for_the_user():
    assert issubclass(ShardSetError, UserError) and issubclass(PackError, UserError)


def test_a_rerun_reads_the_records_with_quarantined_images_alone(folder, tmp_path, monkeypatch):
    """Two reads of a record: when it is found whole, and again for its reasons."""
    src = Path(shutil.copytree(folder, tmp_path / "src"))
    (src / "class 1" / "001.jpg").write_bytes(b"no image")
    options = PackOptions(src, tmp_path / "out", workers=1, shard_size=25)
    manifest = pack(options, progress=False)
    reads: list[int] = []

    def counted(store, shard):
        reads.append(shard)
        return read_record(store, shard)

    monkeypatch.setattr("shards.packing.committing.read_record", counted)
    assert pack(options, progress=False) == manifest
    (bad,) = (shard for shard, record in enumerate(manifest.records) if record.quarantined)
    assert sorted(reads) == sorted([*range(5), bad])
