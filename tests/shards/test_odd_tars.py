"""Unusual and damaged tars, each read in every way: what is not found is named, and all ways say the same."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from shards import PackOptions, ShardSet, StreamError, pack
from shards.foreign.indexing import index_tars
from shards.foreign.streaming import images
from shards.format.contents import Contents
from shards.packing.preview import preview
from shards.packing.sources import Record, open_source
from shards.verify import verify
from tests.support.pictures import gradient, jpeg
from tests.support.tars import tar_bytes

pytest.importorskip("webdataset")

PHOTOS = {name: jpeg(gradient(60 + number, 48, seed=number)) for number, name in enumerate("abcdefgh")}
NAME_OF = {data: name for name, data in PHOTOS.items()}
AGAIN = "duplicate: an earlier member has the same name"
LINK = "link: not a regular file of the tar"
SPARSE = "sparse: the tar stores it in pieces; write the tar without --sparse"


@dataclass
class Case:
    """A tar, the label of each photo that is found, what is named instead, and what is said to be hidden."""

    data: bytes
    labels: dict[str, int]
    named: dict[str, str] = field(default_factory=dict)
    hidden: str = ""

    @property
    def damage(self) -> str:
        return self.named.get("x.tar", "")


def sample(number: int, name: str) -> list[tuple[str, bytes]]:
    return [(f"{number}.jpg", PHOTOS[name]), (f"{number}.cls", b"%d" % (number % 2))]


def four() -> list[tuple[str, bytes]]:
    return [member for number, name in enumerate("abcd") for member in sample(number, name)]


LABELS = {"a": 0, "b": 1, "c": 0, "d": 1}


def ustar(members: list[tuple[str, bytes]]) -> bytes:
    return tar_bytes(members, tarfile.USTAR_FORMAT)


def stored(members: list[tuple[str, bytes]]) -> int:
    """Size of the members in a tar."""
    return sum(512 + -(-len(data) // 512) * 512 for _, data in members)


def joined() -> Case:
    return Case(ustar(four()[:4]) + ustar(four()[4:]), LABELS)


def joined_with_equal_names() -> Case:
    other = [*sample(1, "e"), *sample(7, "f")]
    return Case(ustar(four()) + ustar(other), LABELS | {"f": 1}, {"x.tar/1.jpg": AGAIN})


def zeros_between_members() -> Case:
    whole, place = ustar(four()), stored(four()[:4])
    return Case(whole[:place] + bytes(512) + whole[place:], LABELS)


def cut_between_members() -> Case:
    place = stored(four()[:4])
    reason = f"truncated: it ends at byte {place:,} without an end mark"
    return Case(ustar(four())[:place], {"a": 0, "b": 1}, {"x.tar": reason})


def cut_within_a_member() -> Case:
    end = stored(four()[:4]) + 512 + 700
    return Case(ustar(four())[:end], {"a": 0, "b": 1}, {"x.tar": f"truncated: it ends at byte {end:,}, within 2.jpg"})


def joined_with_a_cut_one() -> Case:
    first, second = ustar(four()[:4]), ustar(four()[4:])[: stored(four()[4:6])]
    reason = f"truncated: it ends at byte {len(first) + len(second):,} without an end mark"
    return Case(first + second, {"a": 0, "b": 1, "c": 0}, {"x.tar": reason})


def other_data_behind_the_end() -> Case:
    head = ustar(four())
    reason = f"damaged: no tar header at byte {len(head):,}, and nothing after it was read"
    return Case(head + b"x" * 700, LABELS, {"x.tar": reason})


def labels_first() -> Case:
    return Case(ustar(sorted(four(), key=lambda member: member[0].endswith("jpg"))), LABELS)


def labels_last() -> Case:
    return Case(ustar(sorted(four(), key=lambda member: member[0].endswith("cls"))), LABELS)


def two_views() -> Case:
    members = []
    for number, (left, right) in enumerate(("ab", "cd")):
        members += [(f"{number}.left.jpg", PHOTOS[left]), (f"{number}.right.jpg", PHOTOS[right])]
        members.append((f"{number}.cls", b"%d" % number))
    return Case(ustar(members), {"a": 0, "b": 0, "c": 1, "d": 1})


def same_name_twice() -> Case:
    members = [("0.jpg", PHOTOS["a"]), ("0.jpg", PHOTOS["b"]), ("1.jpg", PHOTOS["c"])]
    return Case(ustar(members), {"a": -1, "c": -1}, {"x.tar/0.jpg": AGAIN})


def hidden_and_system_names() -> Case:
    members = [
        ("./.ipynb_checkpoints/0-checkpoint.jpg", PHOTOS["e"]), ("./cat/@eaDir/0.jpg/M.jpg", PHOTOS["f"]),
        *four(), ("__MACOSX/cat/._1.jpg", PHOTOS["g"]), ("__MACOSX/2.jpg", PHOTOS["g"]), ("._1.jpg", PHOTOS["h"]),
        (".DS_Store", b"x"), ("cat/.notes/readme.txt", b"x"),
    ]  # fmt: skip
    hidden = "4 hidden or system folders and files (1 ._*, 1 .ipynb_checkpoints, 1 @eaDir, 1 __MACOSX)"
    return Case(ustar(members), LABELS, hidden=hidden)


def links() -> Case:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, tarfile.TarInfo("dir"), tarfile.DIRTYPE)
        for name, data in sample(1, "a"):
            add(tar, tarfile.TarInfo(name), tarfile.REGTYPE, data)
        for name, kind in (("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.linkname = "1.jpg"
            add(tar, info, kind)
    return Case(buffer.getvalue(), {"a": 1}, {"x.tar/hard.jpg": LINK, "x.tar/soft.jpg": LINK})


def add(tar: tarfile.TarFile, info: tarfile.TarInfo, kind: bytes, data: bytes = b"") -> None:
    info.type, info.size = kind, len(data)
    tar.addfile(info, io.BytesIO(data))


def sparse() -> Case:
    """As GNU tar 1.34 writes with --sparse: a file with holes, and last one whose real size exceeds the tar."""
    pieces = PHOTOS["e"][:512] + PHOTOS["e"][-512:]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add_sparse(tar, "0.jpg", [(0, len(PHOTOS["a"]))], PHOTOS["a"], len(PHOTOS["a"]))
        add_sparse(tar, "1.jpg", [(0, 512), (len(PHOTOS["e"]) - 512, 512)], pieces, len(PHOTOS["e"]))
        for name, data in sample(3, "d"):
            add(tar, tarfile.TarInfo(name), tarfile.REGTYPE, data)
        add_sparse(tar, "4.jpg", [(0, 512), (1 << 30, 0)], PHOTOS["f"][:512], 1 << 30)
        add(tar, tarfile.TarInfo("5.jpg"), tarfile.REGTYPE, PHOTOS["b"])
    return Case(buffer.getvalue(), {"a": -1, "d": 1, "b": -1}, {"x.tar/1.jpg": SPARSE, "x.tar/4.jpg": SPARSE})


def add_sparse(tar: tarfile.TarFile, name: str, pieces: list[tuple[int, int]], data: bytes, size: int) -> None:
    text = "\n".join(map(str, [len(pieces), *(number for piece in pieces for number in piece)])).encode() + b"\n"
    info = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name, "GNU.sparse.realsize": str(size),
    }  # fmt: skip
    add(tar, info, tarfile.REGTYPE, text + bytes(-len(text) % 512) + data)


def long_names(kind: int) -> Case:
    long = "folder/" * 30 + "x" * 120
    return Case(tar_bytes([(f"{long}.jpg", PHOTOS["a"]), (f"{long}.cls", b"1")], kind), {"a": 1})


CASES: list[Callable[[], Case]] = [
    joined, joined_with_equal_names, joined_with_a_cut_one, zeros_between_members, cut_between_members,
    cut_within_a_member, other_data_behind_the_end, labels_first, labels_last, two_views, same_name_twice,
    hidden_and_system_names, links, sparse,
    lambda: long_names(tarfile.GNU_FORMAT), lambda: long_names(tarfile.PAX_FORMAT),
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=[*(case.__name__ for case in CASES[:-2]), "gnu", "pax"])
def test_every_way_of_reading_finds_or_names_the_same(make, tmp_path, caplog, cli):
    case = make()
    path = tmp_path / "tars" / "x.tar"
    path.parent.mkdir()
    path.write_bytes(case.data)

    _, lines = preview(PackOptions(path, tmp_path / "packed"))
    assert ("problems" in "".join(lines)) == bool(case.named)
    assert case.hidden in "\n".join(lines) and case.damage in "\n".join(lines)

    result = cli("--src", path, "--out", tmp_path / "packed", "--workers", 1)
    assert f"packed {len(case.labels)} image" in result.stdout
    assert case.hidden in result.stdout and case.damage in result.stdout
    check_set(tmp_path / "packed", case)

    said: list[str] = []
    index_tars(path.parent, workers=1, say=said.append)
    assert case.hidden in said[0] and case.damage in said[0]
    check_set(path.parent, case)

    found, error = streamed(path)
    assert found == list(case.labels), "in the tar's order"
    assert case.damage in error and bool(case.damage) == bool(error)
    assert case.hidden in caplog.text
    reports = dict(r.getMessage().split(" is left out: ") for r in caplog.records if " is left out: " in r.getMessage())
    expected = {source: reason for source, reason in case.named.items() if source != "x.tar"}
    assert {source.removeprefix(f"{path.parent}/"): reason for source, reason in reports.items()} == expected


def check_set(folder: Path, case: Case) -> None:
    with ShardSet(folder) as found:
        labels = found.labels(np.arange(len(found))).tolist()
        assert {NAME_OF[found.read(i)]: label for i, label in enumerate(labels)} == case.labels
        assert len(labels) == len(case.labels)
        assert [str(problem) for problems in verify(found, workers=1) for problem in problems] == []
    reports = map(json.loads, (folder / "quarantine.jsonl").read_text().splitlines())
    named = {report["source"]: report["reason"] for report in reports}
    # in a sparse or linked member's place, indexing may also miss the image of its key
    assert {source: reason for source, reason in named.items() if not reason.startswith("no image")} == case.named


def streamed(path: Path) -> tuple[list[str], str]:
    found = []
    try:
        for image in images(str(path)):
            found.append(NAME_OF[image.data])
    except StreamError as error:
        return found, str(error)
    return found, ""


def test_a_pack_of_a_damaged_tar_ends_with_its_name(tmp_path, cli):
    case = cut_between_members()
    (tmp_path / "a.tar").write_bytes(case.data)
    result = cli("--src", tmp_path / "a.tar", "--out", tmp_path / "out")
    assert "1 tar is damaged; its images behind the damage are missing: a.tar: truncated: it ends" in result.stdout
    assert pack(PackOptions(tmp_path / "a.tar", tmp_path / "out"), progress=False).samples == 2


def old_sparse(tail: bytes) -> bytes:
    """A header of GNU's older format whose map of pieces continues in the next block, which is cut off."""
    info = tarfile.TarInfo("x.jpg")
    info.size = 100
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482] = tarfile.GNUTYPE_SPARSE, 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tail


def test_damaged_maps_of_sparse_files_are_damage(tmp_path):
    negative = io.BytesIO()
    with tarfile.open(fileobj=negative, mode="w") as tar:
        add_sparse(tar, "x.jpg", [(0, -5)], PHOTOS["b"], -5)
    for data, cause in (
        (old_sparse(b""), "not a tar"),
        (old_sparse(bytes(100)), "not a tar"),
        (negative.getvalue(), "points back"),
    ):
        contents = Contents.read(io.BytesIO(ustar(sample(0, "a"))[: stored(sample(0, "a"))] + data))
        assert [image.name for image in contents.images] == [b"0.jpg"]
        assert contents.damage.startswith(("damaged: ", "truncated: "))
        assert [image.name for image in Contents.read(io.BytesIO(data)).images] == []
        assert cause in Contents.read(io.BytesIO(data)).damage


def test_a_compressed_tar_has_the_images_that_a_stream_reads(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(ustar(four())))
    for src in (tmp_path / "a.tar.gz", tmp_path):
        source = open_source(PackOptions(src, "out"))
        assert source.kind == "targz"
        members = [record.member for record in source.records() if isinstance(record, Record)]
        assert members == [b"%d.jpg" % number for number in range(4)]
    found, error = streamed(tmp_path / "a.tar.gz")
    assert found == list(LABELS) and not error
