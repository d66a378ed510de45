"""`file:///` URLs: as source, output and set, and in lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards import PackOptions, ShardSet, pack
from shards.foreign.streaming import expand
from shards.storage.places import local
from shards.storage.store import open_place, open_store
from tests.support.folders import same_files


def test_the_path_that_a_url_means():
    assert local("file:///a%20b/%C3%A9?x#1") == "/a b/é?x#1"
    assert local("file://localhost/a") == "/a"
    assert local("/a%20b") == "/a%20b" and local("s3://b/a%20b") == "s3://b/a%20b"
    with pytest.raises(OSError, match="file:///FOLDER/FILE"):
        open_store("file://elsewhere/a")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_and_an_output(folder, packed, tmp_path, cli, workers):
    done = cli(
        "--src", folder.as_uri(), "--out", f"{tmp_path.as_uri()}/o%20t", "--shard-size", "25", "--workers", workers
    )
    assert done.returncode == 0, done.stderr
    assert same_files(packed, tmp_path / "o t")
    with ShardSet(f"{tmp_path.as_uri()}/o%20t") as shard_set:
        assert shard_set.path == tmp_path / "o t" and len(shard_set) == 120
    assert cli("verify", f"{tmp_path.as_uri()}/o%20t").returncode == 0


def test_entries_of_lists(folder, packed, tmp_path):
    paths = sorted(folder.rglob("*.jpg"))
    (tmp_path / "list.txt").write_text("".join(f"{path.as_uri()}\n" for path in [*paths, Path("/nothing.jpg")]))
    assert pack(PackOptions((tmp_path / "list.txt").as_uri(), tmp_path / "out"), progress=False).samples == 120
    line = (tmp_path / "out" / "quarantine.jsonl").read_text()
    assert "file:///nothing.jpg" in line and "cannot read: No such file or directory" in line


def test_streamed_tars(tmp_path):
    (tmp_path / "a b.tar").write_bytes(b"x")
    assert expand(f"{tmp_path.as_uri()}/a%20b.tar") == [str(tmp_path / "a b.tar")]
    with open_place(f"{tmp_path.as_uri()}/a%20b.tar") as file:
        assert file.read() == b"x"
