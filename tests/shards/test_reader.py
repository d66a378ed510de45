from __future__ import annotations

import errno
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import SampleError, ShardSet, ShardSetError
from shards.errors import ShardIndexError, StoreError
from shards.format.index import ROW, npy_bytes, npy_header, rows_of_index
from shards.storage import retry


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_importing_shards_is_quick_and_loads_no_torch():
    code = "import sys, shards; print([m for m in ('torch', 'PIL', 'rich') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_sizes_labels_and_places(packed, folder):
    names = {path.read_bytes(): path for path in folder.rglob("*.jpg")}
    with ShardSet(packed) as shard_set:
        ids = np.random.default_rng(0).permutation(120)
        sizes, labels = shard_set.sizes(ids), shard_set.labels(ids)
        assert sizes.dtype == np.int32
        assert labels.dtype == np.int64
        for i, size, label in zip(ids, sizes.tolist(), labels, strict=True):
            number = int(names[shard_set.read(int(i))].stem)
            assert (size, label) == ([50 + number % 7, 60 + number], number % 3)
        assert shard_set.locate(0) == ("shard-000000.tar", "000000000000")
        assert shard_set.locate(119) == ("shard-000004.tar", "000004000019")
        assert shard_set.sizes(ids[:0]).shape == (0, 2)


def test_ids_outside_the_set_are_named(packed):
    shard_set = ShardSet(packed)
    for call in (shard_set.read, shard_set.locate, lambda i: shard_set.sizes(np.array([0, i]))):
        for wrong in (-1, 120):
            with pytest.raises(IndexError, match=rf"{wrong} is outside 0..119"):
                call(wrong)


def test_opening_reads_the_manifest_alone(packed, tmp_path):
    shutil.copy(packed / "manifest.json", tmp_path)
    assert len(ShardSet(tmp_path)) == 120


def test_the_digest_depends_on_the_bytes_of_a_set(packed, copy, shard_sets):
    assert ShardSet(packed).digest == ShardSet(copy).digest
    assert ShardSet(packed).digest != ShardSet(shard_sets / "train").digest


def test_threads_and_pickles_and_few_descriptors(packed, monkeypatch):
    """More shards than file descriptors: tars are closed and reopened while threads read."""
    expected = [ShardSet(packed).read(i) for i in range(120)]
    monkeypatch.setattr("shards.storage.local_access._descriptors", lambda: 1)
    shard_set = pickle.loads(pickle.dumps(ShardSet(packed)))
    ids = np.random.default_rng(0).integers(0, 120, 4000).tolist()
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as pool:
        for i, data in zip(ids, pool.map(shard_set.read, ids), strict=True):
            assert data == expected[i]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    shard_set.close()
    assert shard_set.read(7) == expected[7]


def test_a_missing_tar_is_no_samples_fault(copy):
    (copy / "shard-000001.tar").unlink()
    shard_set = ShardSet(copy)
    remedy = "put it back, or run the fastmoco pack command that packed the set again: it repairs it"
    with pytest.raises(StoreError, match=rf"^{copy}/shard-000001\.tar is missing; {remedy}$"):
        shard_set.check(30)
    assert shard_set.read(24)
    assert shard_set.read(50)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_fault_of_reading_is_no_images_fault_and_stops(packed, monkeypatch, number):
    def fails(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("FASTMOCO_STORE_WAIT", "0")
    shard_set = ShardSet(packed)
    shard_set.sizes(np.arange(120))
    monkeypatch.setattr(os, "pread", fails)  # no disk of this machine can be made to fail
    told = rf"^cannot read {packed}/shard-000001\.tar: {os.strerror(number)}, for 0 s \(FASTMOCO_STORE_WAIT sets"
    with pytest.raises(StoreError, match=told) as caught:
        shard_set.check(30)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_disk_that_fails_for_a_while_is_waited_for(packed, copy, monkeypatch):
    """A sector that answers late cuts a pread short first; a mount that is gone takes the whole set with it."""
    monkeypatch.setattr("shards.storage.local_access.pauses", lambda retries: (0.01,) * retries)
    monkeypatch.setattr(retry, "_SLACK", 60.0)
    shard_set, pread, answers = ShardSet(copy), os.pread, [errno.EIO, 700, errno.EIO, errno.ESTALE]

    def flaky(descriptor: int, length: int, offset: int) -> bytes:
        answer = answers.pop() if answers else length
        if answer in (errno.EIO, errno.ESTALE):
            raise OSError(answer, os.strerror(answer))
        return pread(descriptor, min(length, answer), offset)

    monkeypatch.setattr(os, "pread", flaky)  # no disk of this machine can be made to fail
    expected = ShardSet(packed)
    assert shard_set.check(30) == expected.check(30) and not answers
    shard_set.close()
    copy.rename(copy.with_name("away"))
    sleep, pauses = retry.Host.sleep, []

    def back_in_the_third(host: retry.Host, *pause: Any) -> bool:
        pauses.extend(pause[:1])
        if len(pauses) == 3 and pause:
            copy.with_name("away").rename(copy)
        return sleep(host, *pause)

    monkeypatch.setattr(retry.Host, "sleep", back_in_the_third)
    assert shard_set.check(60) == expected.check(60)
    assert len(pauses) == 3


def test_indexes_are_held_against_the_manifest(copy):
    """A swap of two indexes with as many rows, and bytes at the end, which the rows themselves do not show."""
    names = [copy / f"shard-{number:06d}.npy" for number in (1, 2, 3)]
    first, second, third = (name.read_bytes() for name in names)
    names[0].write_bytes(second)
    names[1].write_bytes(first)
    names[2].write_bytes(third + b"\0")
    shard_set = ShardSet(copy)
    for number in (1, 2, 3):
        with pytest.raises(ShardIndexError, match=rf"shard-00000{number}\.npy is damaged: .*remove .* and run"):
            shard_set.sizes(np.array([25 * number]))
    manifest = copy / "manifest.json"
    manifest.write_text(re.sub(r'"index_sha256": "\w+"', '"index_sha256": ""', manifest.read_text()))
    names[0].write_bytes(first)
    assert ShardSet(copy).sizes(np.array([25])).shape == (1, 2), "sets without hashes stay readable"


def test_damaged_tars_are_named(copy):
    shard_set = ShardSet(copy)
    rows = np.load(copy / "shard-000001.npy")
    overwrite(copy / "shard-000001.tar", int(rows["offset"][4]), b"\0")
    overwrite(copy / "shard-000001.tar", int(rows["offset"][5] + rows["size"][5]) - 1, b"\0")
    overwrite(copy / "shard-000001.tar", int(rows["offset"][6]) + 400, b"\x55\xaa")
    os.truncate(copy / "shard-000001.tar", int(rows["offset"][24]) + 100)
    for row in (4, 5):
        with pytest.raises(SampleError, match="not a complete JPEG") as caught:
            shard_set.read(25 + row)
        assert caught.value.key == f"00000100000{row}"
    with pytest.raises(SampleError, match="ends after 100 of"):
        shard_set.read(49)
    assert shard_set.read(31)
    with pytest.raises(SampleError, match="CRC-32"):
        shard_set.check(31)
    shard_set.check(32)


def test_folders_that_are_no_sets_say_what_to_do(copy, tmp_path):
    with pytest.raises(ShardSetError, match=r"no such folder; to create one: fastmoco pack --src"):
        ShardSet(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardSetError, match=r"no manifest.json in .*empty, so it is not a shard set"):
        ShardSet(tmp_path / "empty")
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest[:300])
    with pytest.raises(ShardSetError, match="damaged"):
        ShardSet(copy)
    (copy / "manifest.json").write_text(manifest.replace("fastmoco-shards/1", "fastmoco-shards/9"))
    with pytest.raises(ShardSetError, match="schema 'fastmoco-shards/9'; this version reads"):
        ShardSet(copy)
    (copy / "manifest.json").write_text("[1, 2]")
    with pytest.raises(ShardSetError, match="damaged"):
        ShardSet(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ShardSetError, match="unfinished packing"):
        ShardSet(copy)


def test_other_things_in_the_place_of_a_set_are_answered_with_what_to_give(copy, tmp_path):
    photos, file = tmp_path / "my photos", tmp_path / "photo.jpg"
    photos.mkdir()
    for path in (photos / "1.jpg", file):
        path.write_bytes(b"")
    said = {
        photos: f"{photos}, so it is not a shard set; to pack images that it holds: fastmoco pack --src '{photos}'",
        tmp_path: f"no manifest.json in {tmp_path}, but in folders of it; give one of these sets, such as {copy}",
        file: f"{file} is a file, and a shard set is a folder; to create one: fastmoco pack --src FOLDER_OF_IMAGES",
        copy / "manifest.json": f"{copy}/manifest.json is a file of a shard set; give the folder of the set: {copy}",
    }
    for place, message in said.items():
        with pytest.raises(ShardSetError, match=re.escape(message)):
            ShardSet(place)


def test_rows_of_an_index_with_our_header_or_another():
    rows = np.zeros(5, ROW)
    rows["size"] = np.arange(5)
    rows["width"] = rows["height"] = 8
    ours, other = npy_bytes(rows), io.BytesIO()
    assert ours.startswith(npy_header(5)) and not ours.startswith(npy_header(6))
    np.lib.format.write_array(other, rows, version=(2, 0))
    for data in (ours, other.getvalue()):
        assert np.array_equal(rows_of_index(data, "shard-000000.npy", 5, 1000), rows)
    for damaged in (ours[:-1], b"", other.getvalue()[:40]):
        with pytest.raises(ValueError, match=r"shard-000000\.npy is damaged"):
            rows_of_index(damaged, "shard-000000.npy", 5, 1000)
