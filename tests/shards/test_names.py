"""The names of a set's images in their source."""

from __future__ import annotations

import bz2
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards import PackOptions, ShardSet, ShardSetError, pack
from shards.format.names import LONGEST, names_bytes, names_of_bytes
from shards.verify import verify
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set

ODD = ["a b.jpg", "100%.jpg", "é世.jpg", "new\nline.jpg", os.fsdecode(b"caf\xe9.jpg"), '"quoted\\".jpg', "<b>.jpg"]
SHOWN = ["a b.jpg", "100%.jpg", "é世.jpg", r"new\nline.jpg", r"caf\xe9.jpg", '"quoted\\".jpg', "<b>.jpg"]


def names(path: Path) -> dict[bytes, str]:
    """Name of each image of a set by its bytes."""
    with ShardSet(path) as shard_set:
        ids = np.arange(len(shard_set))
        assert shard_set.names(ids[::-1])[::-1] == shard_set.names(ids)
        return dict(zip(map(shard_set.read, ids.tolist()), shard_set.names(ids), strict=True))


def image(number: int) -> bytes:
    return jpeg(gradient(40, 40 + number, seed=number))


def test_a_folder_gives_paths_below_it(tmp_path):
    for number, name in enumerate(ODD):
        path = tmp_path / "src" / f"class {number % 2}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    (tmp_path / "src/class 0/bad.jpg").write_bytes(b"no image")
    out = pack_set(tmp_path / "src", tmp_path / "set", shard_size=3)
    assert names(out) == {image(number): f"class {number % 2}/{name}" for number, name in enumerate(SHOWN)}
    with ShardSet(out) as shard_set:
        assert [shard_set.source(sample) for sample in range(7)] == shard_set.names(np.arange(7))
    assert not [problem for found in verify(ShardSet(out), 1) for problem in found]


def test_a_list_gives_its_lines_and_a_tar_its_members(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(image(number))
    (tmp_path / "list.txt").write_text(f"0.jpg\n{tmp_path}/1.jpg\nfile://{tmp_path}/2.jpg\n")
    out = pack_set(tmp_path / "list.txt", tmp_path / "set")
    assert set(names(out).values()) == {"0.jpg", f"{tmp_path}/1.jpg", f"file://{tmp_path}/2.jpg"}
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/x.tar", "w") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"sub/{number}.jpg")
            member.size = len(image(number))
            tar.addfile(member, io.BytesIO(image(number)))
    of_tars = pack_set(tmp_path / "tars", tmp_path / "of_tars")
    assert names(of_tars) == {image(number): f"x.tar/sub/{number}.jpg" for number in range(3)}


def test_tars_of_img2dataset_give_the_urls_of_their_json(tmp_path):
    urls = ["https://example.org/a.jpg?x=1&y=<b>", None, "https://example.org/é\n", 7, "x" * 5000, "ftp://h/\u05d0"]
    (tmp_path / "src").mkdir()
    with tarfile.open(tmp_path / "src/00000.tar", "w") as tar:
        for number, url in enumerate(urls):
            text = {"key": f"{number:09d}", "caption": "a cat", "status": "success"} | ({"url": url} if url else {})
            odd = "\x1f" if number in (0, 1) else ""  # as what separates name and URL in a plan
            for name, data in (
                (f"{number:09d}{odd}.jpg", image(number)),
                (f"{number:09d}{odd}.json", json.dumps(text)),
            ):
                data = data if isinstance(data, bytes) else data.encode()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        member.name, member.size = "000000099.jpg", 0
        tar.addfile(member)
    out = pack_set(tmp_path / "src", tmp_path / "set", shard_size=4)
    found = {image(number): f"00000.tar/{number:09d}.jpg" for number in range(2, 6)}
    found |= {image(number): f"00000.tar/{number:09d}\\x1f.jpg" for number in (0, 1)}
    assert names(out) == found
    with ShardSet(out) as shard_set:
        ids = np.arange(6)
        given = dict(zip(map(shard_set.read, ids.tolist()), shard_set.urls(ids), strict=True))
        assert given == {image(n): urls[n] if n in (0, 5) else "" for n in range(6)}
        assert "000000099.jpg" in (out / "quarantine.jsonl").read_text() and "http" not in shard_set.source(0)
        assert not [problem for found in verify(shard_set, 1) for problem in found]
    again = pack_set(tmp_path / "src", tmp_path / "again", shard_size=4, workers=2)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }
    lines = b"".join(bz2.decompress(path.read_bytes()) for path in sorted(out.glob("*.names"))).splitlines()
    assert json.dumps(["00000.tar/000000000\\x1f.jpg", urls[0]], separators=(",", ":")).encode() in lines
    assert b'"00000.tar/000000002.jpg"' in lines  # without a URL as before


def test_items_give_their_numbers_and_names(tmp_path):
    items = [{"image": image(0), "name": "cat.jpg"}, image(1)]
    pack(items, tmp_path / "set", progress=False)
    assert names(tmp_path / "set") == {image(0): "item 0 (cat.jpg)", image(1): "item 1"}


def test_indexed_tars_give_tar_and_key(tmp_path):
    from shards.foreign.indexing import index_tars

    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/x.tar", "w") as tar:
        member = tarfile.TarInfo("sub/0.jpg")
        member.size = len(image(0))
        tar.addfile(member, io.BytesIO(image(0)))
    index_tars(tmp_path / "set", workers=1, say=lambda _: None)
    assert names(tmp_path / "set") == {image(0): "x.tar/sub/0"}


def test_a_set_without_names_gives_tar_and_key(folder, tmp_path):
    out = pack_set(folder, tmp_path / "set", shard_size=25, names=False)
    assert not list(out.glob("*.names")) and "names_sha256" not in (out / "manifest.json").read_text()
    with ShardSet(out) as shard_set:
        assert shard_set.names(np.array([26])) == ["shard-000001.tar/000001000001"]
        assert shard_set.source(26) == ""
        with pytest.raises(IndexError, match="sample id 120 is outside"):
            shard_set.names(np.array([120]))


def test_a_set_of_an_earlier_version_is_read_verified_and_complete(folder, packed, tmp_path):
    old = Path(shutil.copytree(packed, tmp_path / "old"))
    for path in (old / "manifest.json", *old.glob("shard-*.json")):
        values = json.loads(path.read_text())
        for record in values.get("records", [values]):
            del record["names_sha256"]
        path.write_text(json.dumps(values))
    for path in old.glob("*.names"):
        path.unlink()
    with ShardSet(old) as shard_set, ShardSet(packed) as new:
        assert shard_set.digest == new.digest
        assert shard_set.names(np.array([3])) == ["shard-000000.tar/000000000003"]
        assert not [problem for found in verify(shard_set, 2) for problem in found]
    before = {path.name: path.stat().st_ino for path in old.glob("shard-*")}
    pack(PackOptions(folder, old, workers=1, shard_size=25), progress=False)  # as it was packed
    assert {path.name: path.stat().st_ino for path in old.glob("shard-*")} == before


def test_damaged_names_are_named_and_packed_again(folder, packed, tmp_path):
    out = Path(shutil.copytree(packed, tmp_path / "set"))
    shutil.copy(out / "shard-000000.names", out / "shard-000001.names")
    (out / "shard-000002.names").write_bytes(b"no names")
    with ShardSet(out) as shard_set:
        assert [str(problem) for found in verify(shard_set, 1) for problem in found] == [
            f"shard-{shard:06d}.names: differs from what was packed (sha256)" for shard in (1, 2)
        ]
        with pytest.raises(ShardSetError, match=r"000001\.names is damaged: .*remove shard-000001\.names and run"):
            shard_set.names(np.array([30]))
        with pytest.raises(ShardSetError, match=r"shard-000002\.names is damaged: it is not compressed by bzip2"):
            shard_set.names(np.array([60]))
        assert shard_set.source(30) == ""  # of messages, which must not fail
    for shard in (1, 2):
        (out / f"shard-{shard:06d}.names").unlink()
    pack(PackOptions(folder, out, workers=1, shard_size=25), progress=False)
    assert (out / "shard-000002.names").read_bytes() == (packed / "shard-000002.names").read_bytes()


def test_the_file_is_what_the_format_says():
    data = names_bytes(["a.jpg", 'é "b".jpg'])
    assert bz2.decompress(data) == '"a.jpg"\n"é \\"b\\".jpg"\n'.encode()
    pair = names_bytes([("a.jpg", "https://é"), "b.jpg"])
    assert bz2.decompress(pair) == '["a.jpg","https://é"]\n"b.jpg"\n'.encode()
    assert names_of_bytes(pair, "f", 2) == [("a.jpg", "https://é"), ("b.jpg", "")]
    longest = names_bytes([("x" * LONGEST, "y" * LONGEST)] * 3)
    assert names_of_bytes(longest, "f", 3)[2][1] == "y" * (LONGEST - 5) + "…"
    long = [name for name, _ in names_of_bytes(names_bytes(["x" * 5000, "世" * 3000]), "f", 2)]
    assert [len(json.dumps(name, ensure_ascii=False).encode()) <= LONGEST for name in long] == [True, True]
    assert long[0] == "x" * (LONGEST - 5) + "…" and long[1].strip("世") == "…"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "it does not hold the names of 1 images"), (names_bytes(["a", "b"]), "it does not hold the names"),
        (names_bytes(["a"])[:-4], "it does not hold the names"), (names_bytes(["a"]) + b"x", "it does not hold"),
        (bz2.compress(b'{"a": 1}\n'), "a line is no text in JSON"), (bz2.compress(b'["a"]\n'), "a line is no text"),
        (bz2.compress(b'["a", 1]\n'), "a line is no text"), (bz2.compress(b'["a", "b", "c"]\n'), "a line is no text"),
        (bz2.compress(b'"\xff"\n'), "no text in UTF-8"),
        (bz2.compress(bytes(100 << 20)), "it does not hold the names"),  # unpacked no further than a name is long
    ],
)  # fmt: skip
def test_damaged_files_are_refused(data, cause):
    with pytest.raises(ValueError, match=cause):
        names_of_bytes(data, "shard-000000.names", 1)
