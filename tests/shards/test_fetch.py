"""Images by URL, as folder, list and tars; which faults are an image's own and which stop the packing."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.images.encode import Rejected
from shards.packing.fetch import fetch_each
from shards.packing.plan import Entry
from shards.packing.sources import Record, open_source
from tests.support.folders import same_files
from tests.support.tars import tar_bytes


def fetch(root: str, entry: Entry) -> bytes:
    [(_, data)] = fetch_each(root, [entry])
    if isinstance(data, Rejected):
        raise data
    return data


@pytest.fixture(scope="module")
def bucket(folder: Path, s3_server: object) -> str:
    """The session's images at s3://photos/images, and in two tars at s3://photos/tars."""
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("photos")
    files.put(f"{folder}/", "photos/images/", recursive=True)
    for number in range(2):
        members = {path.name: path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[number::2]}
        files.pipe_file(f"photos/tars/{number}.tar", tar_bytes(members))
    return "s3://photos"


def options(src: object, out: Path, **changes) -> PackOptions:
    return replace(PackOptions(str(src), out, workers=1, shard_size=25), **changes)


def contents(path: Path) -> list[bytes]:
    with ShardSet(path) as shard_set:
        return [shard_set.read(i) for i in range(len(shard_set))]


def test_a_folder_at_a_url_gives_the_same_bytes_as_the_local_one(bucket, packed, tmp_path):
    pack(options(f"{bucket}/images", tmp_path / "out", workers=2), progress=False)
    assert same_files(packed, tmp_path / "out")


def test_a_list_of_urls_and_a_list_at_a_url(bucket, folder, packed, tmp_path):
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    (tmp_path / "list.txt").write_text("".join(f"{bucket}/images/{name}\n" for name in [*names, "missing.jpg"]))
    pack(options(tmp_path / "list.txt", tmp_path / "urls"), progress=False)
    assert sorted(contents(tmp_path / "urls")) == sorted(contents(packed))
    (line,) = (tmp_path / "urls" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == f"{bucket}/images/missing.jpg"
    assert json.loads(line)["reason"].startswith("cannot read: ")
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file("photos/images/list.txt", "\n".join(names).encode())
    pack(options(f"{bucket}/images/list.txt", tmp_path / "relative"), progress=False)
    assert contents(tmp_path / "relative") == contents(packed), "the order is that of the names"
    s3fs.S3FileSystem(skip_instance_cache=True).rm("photos/images/list.txt")


def test_tars_at_a_url(bucket, packed, tmp_path):
    source = open_source(options(f"{bucket}/tars", tmp_path / "out"))
    assert source.kind == "tars"
    records = [record for record in source.records() if isinstance(record, Record)]
    assert len(records) == 120
    pack(options(f"{bucket}/tars", tmp_path / "out"), progress=False)
    assert sorted(contents(tmp_path / "out")) == sorted(contents(packed))


def test_tables_at_a_url(bucket):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    from s3fs import S3FileSystem

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"path": ["1.jpg", "2.jpg"], "label": ["b", "a"]}), buffer)
    S3FileSystem(skip_instance_cache=True).pipe({"photos/t/x.parquet": buffer.getvalue(), "photos/t/x.csv": b"path\n1"})
    source = open_source(options(f"{bucket}/t/x.parquet", Path("out"), label_column="label"))
    assert list(source.records()) == [Record(b"1.jpg", -1, b"b"), Record(b"2.jpg", -1, b"a")]
    source = open_source(options(f"{bucket}/t/x.csv", Path("out")))
    assert list(source.records()) == [Record(b"1")]
    assert source.root == f"{bucket}/t"


def test_a_missing_source_is_an_error_that_names_it(bucket, tmp_path):
    for src in (f"{bucket}/nothing", "s3://no-such-bucket/x", f"{bucket}/nothing.csv", f"{bucket}/no.tar"):
        with pytest.raises(PackError, match=src):
            pack(options(src, tmp_path / "out"), progress=False)


def test_a_missing_object_is_its_own_fault_and_a_missing_bucket_is_not(bucket):
    with pytest.raises(Rejected, match="cannot read"):
        fetch(f"{bucket}/images", Entry(b"missing.jpg"))
    with pytest.raises(FileNotFoundError):
        fetch("s3://no-such-bucket/images", Entry(b"1.jpg"))


def test_many_are_fetched_ahead_in_order(bucket, folder):
    paths = sorted(folder.rglob("*.jpg"))
    local = Entry(os.fsencode(paths[0]))
    entries = [Entry(os.fsencode(path.relative_to(folder))) for path in paths] + [Entry(b"missing.jpg"), local]
    found = list(fetch_each(f"{bucket}/images", entries[:-1])) + list(fetch_each(str(folder), [local]))
    assert [entry for entry, _ in found] == entries
    assert [data for _, data in found[:120]] == [path.read_bytes() for path in paths]
    assert isinstance(found[120][1], Rejected)
    assert found[121][1] == paths[0].read_bytes()


def test_faults_of_local_files(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"x" * 100)
    assert fetch(str(tmp_path), Entry(b"1.jpg")) == b"x" * 100
    with pytest.raises(Rejected, match="cannot read: No such file"):
        fetch(str(tmp_path), Entry(b"2.jpg"))
    with pytest.raises(Rejected, match="cannot read: No such file"):
        fetch("elsewhere", Entry(os.fsencode(tmp_path / "2.jpg")))
    with pytest.raises(FileNotFoundError):
        fetch(str(tmp_path / "gone"), Entry(b"1.jpg"))
    with pytest.raises(Rejected, match="truncated: 60 of 80 bytes are in the tar"):
        fetch(str(tmp_path), Entry(b"1.jpg", -1, b"member", 40, 80))
    with pytest.raises(Rejected, match="too large: a file of 2,000,000,000 bytes"):
        fetch(str(tmp_path), Entry(b"1.jpg", size=2_000_000_000))
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(Rejected, match="too large: a file of 1,073,741,825 bytes"):
        fetch(str(tmp_path), Entry(b"huge.jpg"))


def test_a_tar_that_is_gone_since_the_planning_costs_none_of_its_images(tmp_path, bucket):
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "0.tar").unlink()
    entry = Entry(b"0.tar", -1, b"7.jpg", 512, 100)
    with pytest.raises(FileNotFoundError, match=r"0\.tar"):
        fetch(str(tmp_path), entry)
    with pytest.raises(OSError, match="No such file or directory") as caught:
        fetch(f"{bucket}/tars", replace(entry, path=b"9.tar"))
    assert caught.value.filename == f"{bucket}/tars/9.tar"
