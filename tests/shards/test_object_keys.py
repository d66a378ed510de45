"""Names of objects with empty parts (`a//b.jpg`, `/b.jpg`), in folders, lists and tars."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards import PackOptions, ShardSet, pack
from tests.support.pictures import gradient, jpeg
from tests.support.tars import tar_bytes

KEYS = ("/lead.jpg", "//two/x.jpg", "a//c.jpg", "a//d//e.jpg", "a/b.jpg", "z.jpg")
IMAGES = {key: jpeg(gradient(64, 60, seed=number)) for number, key in enumerate(KEYS)}


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> str:
    """A bucket of its own, as these objects would appear in the listings of other tests."""
    import botocore.session

    client = botocore.session.get_session().create_client("s3")
    client.create_bucket(Bucket="slashes")
    for key, data in IMAGES.items():
        client.put_object(Bucket="slashes", Key=key, Body=data)
    client.create_bucket(Bucket="slashed-tars")
    client.put_object(Bucket="slashed-tars", Key="t//0.tar", Body=tar_bytes({"x.jpg": IMAGES["z.jpg"]}))
    return "s3://slashes"


def packed(src: object, out: Path) -> set[bytes]:
    pack(PackOptions(str(src), out, workers=1), progress=False)
    assert (out / "quarantine.jsonl").read_bytes() == b""
    with ShardSet(out) as shard_set:
        return {shard_set.read(i) for i in range(len(shard_set))}


@pytest.mark.parametrize("prefix", ["", "/", "//", "/a", "/a/", "/a//", "/a//d", "/a//d//", "///two"])
def test_a_folder_holds_what_its_prefix_says(bucket, tmp_path, prefix):
    key = prefix.removeprefix("/")
    key += "/" if key and not key.endswith("/") else ""
    expected = {data for name, data in IMAGES.items() if name.startswith(key)}
    assert packed(f"{bucket}{prefix}", tmp_path / "out") == expected


def test_a_list_of_urls(bucket, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{bucket}/{key}\n" for key in KEYS))
    assert packed(tmp_path / "list.txt", tmp_path / "out") == set(IMAGES.values())


@pytest.mark.parametrize("src", ["s3://slashed-tars/t//0.tar", "s3://slashed-tars/t//", "s3://slashed-tars"])
def test_tars(bucket, tmp_path, src):
    pack(PackOptions(src, tmp_path / "out", workers=1, source="tars"), progress=False)
    with ShardSet(tmp_path / "out") as shard_set:
        assert [shard_set.read(i) for i in range(len(shard_set))] == [IMAGES["z.jpg"]]
