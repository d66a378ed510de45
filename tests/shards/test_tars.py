"""Tars as a source: which members are images, what their labels are, what is wrong with a tar."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.images.encode import Rejected
from shards.packing.fetch import fetch_each
from shards.packing.plan import Entry
from shards.packing.sources import Record, open_source
from tests.support import pictures
from tests.support.commands import fastmoco_shard
from tests.support.folders import same_files
from tests.support.tars import Link, write_tar


def read(src: Path, **changes) -> tuple[list[Record], list[tuple[str, str]], int]:
    source = open_source(PackOptions(src, src.parent / "out", **changes))
    found = list(source.records())
    records = [record for record in found if isinstance(record, Record)]
    problems = [(problem.source, problem.reason) for problem in found if not isinstance(problem, Record)]
    for record in records:
        entry = Entry(record.path, -1, record.member, record.offset, record.size)
        [(_, data)] = fetch_each(source.root, [entry])
        assert not isinstance(data, Rejected)
        assert data.startswith(b"image")
    return records, problems, source.ignored


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_images_and_labels(tmp_path, kind):
    long = "deep/" * 15 + "x" * 90
    members = {
        "a.jpg": b"image a", "a.cls": b"3\n", "a.json": b"{}",
        "b.txt": b"", "b.PNG": b"image b", "b.seg.png": b"mask",
        "dir.1/c.v1.jpg": b"image c1", "dir.1/c.v1.cls": b"dog", "dir.1/c.v2.jpg": b"image c2",
        "readme": b"",
        f"{long}.webp": b"image long",
        "größe.jpg": b"image u",
    }  # fmt: skip
    records, problems, ignored = read(write_tar(tmp_path / "x.tar", members, kind))
    assert [(record.member.decode(), record.label, record.size) for record in records] == [
        ("a.jpg", b"3", 7),
        ("b.PNG", None, 7),
        ("dir.1/c.v1.jpg", b"dog", 8),
        ("dir.1/c.v2.jpg", None, 8),
        (f"{long}.webp", None, 10),
        ("größe.jpg", None, 7),
    ]
    assert {record.path for record in records} == {b"x.tar"}
    assert problems == []
    assert ignored == 3


def test_a_folder_of_tars_is_distinguished_from_a_folder_of_images(tmp_path):
    for name in ("tars/0.tar", "tars/1.tar", "nested/part/2.tar"):
        write_tar(tmp_path / name, {"a.jpg": b"image"})
    (tmp_path / "tars" / "notes.json").write_text("{}")
    assert {record.path for record in read(tmp_path / "tars")[0]} == {b"0.tar", b"1.tar"}
    assert open_source(PackOptions(tmp_path / "nested", "out")).kind == "folder"
    assert {record.path for record in read(tmp_path / "nested", source="tars")[0]} == {b"part/2.tar"}
    (tmp_path / "tars" / "1.jpg").write_bytes(b"x")
    assert open_source(PackOptions(tmp_path / "tars", "out")).kind == "folder"


def test_damaged_tars_are_reported_and_their_whole_members_used(tmp_path):
    good = write_tar(tmp_path / "tars" / "good.tar", {f"{n}.jpg": b"image" * 300 for n in range(4)}).read_bytes()
    (tmp_path / "tars" / "cut.tar").write_bytes(good[:5000])
    (tmp_path / "tars" / "hole.tar").write_bytes(good[:4096] + b"x" * 512 + good[4608:])
    (tmp_path / "tars" / "empty.tar").write_bytes(b"")
    (tmp_path / "tars" / "text.tar").write_bytes(b"no tar" * 500)
    (tmp_path / "tars" / "gone.tar").symlink_to("nowhere")
    source = open_source(PackOptions(tmp_path / "tars", "out", source="tars"))
    found = list(source.records())
    counts = [record.path for record in found if isinstance(record, Record)]
    assert {path: counts.count(path) for path in counts} == {b"good.tar": 4, b"cut.tar": 2, b"hole.tar": 2}
    problems = {problem.source: problem.reason for problem in found if not isinstance(problem, Record)}
    assert {name: reason.split(":")[0] for name, reason in problems.items()} == {
        "cut.tar": "truncated",
        "hole.tar": "damaged",
        "empty.tar": "damaged",
        "text.tar": "damaged",
        "gone.tar": "broken link",
    }
    assert problems["hole.tar"] == "damaged: no tar header at byte 4,096, and nothing after it was read"
    assert problems["cut.tar"] == "truncated: it ends at byte 5,000, within 2.jpg"


def test_links_and_duplicates_in_a_tar(tmp_path):
    twice = [("a.jpg", b"image first"), ("between.txt", b""), ("a.jpg", b"image 2"), ("between.txt", b"")]
    records, problems, _ = read(write_tar(tmp_path / "x.tar", [*twice, ("link.jpg", Link("a.jpg"))]))
    assert [record.size for record in records] == [11]
    assert problems == [
        ("x.tar/link.jpg", "link: not a regular file of the tar"),
        ("x.tar/a.jpg", "duplicate: an earlier member has the same name"),
    ]


def test_a_missing_tar_is_an_error(tmp_path):
    with pytest.raises(PackError, match="No such file"):
        read(tmp_path / "x.tar")


def test_our_own_tars_are_packed_again(packed, tmp_path):
    """From a set to a set: the same images, labels kept as numbers, another shard size and order."""
    manifest = pack(PackOptions(packed, tmp_path / "out", workers=2, shard_size=40), progress=False)
    assert manifest.samples == 120
    assert manifest.source["images"] == 120

    def contents(path: Path) -> list[tuple[bytes, int]]:
        with ShardSet(path) as shard_set:
            return sorted((shard_set.read(i), int(shard_set.labels(np.array([i]))[0])) for i in range(120))

    assert contents(packed) == contents(tmp_path / "out")
    result = fastmoco_shard("--src", packed, "--out", tmp_path / "again", "--shard-size", 40, "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert same_files(tmp_path / "out", tmp_path / "again")


def test_bad_members_are_named_with_their_tar(tmp_path):
    image = pictures.jpeg(pictures.gradient())
    write_tar(tmp_path / "src" / "x.tar", {"good.jpg": image, "bad.jpg": image[:-200], "bad.cls": b"1"})
    pack(PackOptions(tmp_path / "src", tmp_path / "out"), progress=False)
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "x.tar/bad.jpg"
    assert json.loads(line)["reason"].startswith("truncated: ")


def test_labels_in_json_members(tmp_path):
    members = {
        "a.jpg": b"image", "a.json": b'{"label": 7, "url": "x"}',
        "b.jpg": b"image", "b.json": b'{"label": "dog"}', "b.cls": b"cat",
        "c.json": '{"label": "größe"}'.encode(), "c.jpg": b"image",
        "d.jpg": b"image", "d.json": b'{"url": "x"}',
        "e.jpg": b"image", "e.json": b'{"label": -1}',
        "f.jpg": b"image", "f.json": b"[1]",
        "g.jpg": b"image", "g.json": b"",
        "h.jpg": b"image", "h.json": b'{"label": ',
        "i.jpg": b"image", "i.json": b'{"label": [1]}',
        "j.jpg": b"image", "j.json": b"[" * 100_000,
        "k.jpg": b"image", "k.json": b'{"label": true}',
        "l.jpg": b"image", "l.json": b'{"label": 12.0}',
        "m.jpg": b"image", "m.json": b'{"label": NaN}',
        "n.jpg": b"image", "n.json": b'{"label": 0.5}',
    }  # fmt: skip
    records, problems, _ = read(write_tar(tmp_path / "x.tar", members))
    assert [(record.member.decode(), record.label) for record in records] == [
        ("a.jpg", b"7"), ("b.jpg", b"cat"), ("c.jpg", "größe".encode()), ("d.jpg", None), ("e.jpg", None),
        ("f.jpg", None), ("g.jpg", None), ("l.jpg", b"12"), ("m.jpg", None),
    ]  # fmt: skip
    assert [source for source, _ in problems] == [f"x.tar/{name}.jpg" for name in "hijkn"]
    assert [reason[:25] for _, reason in problems] == [f"label: cannot read {name}.json" for name in "hijkn"]
