"""Archives that several processes read: the same images, in the same order, and the same counts as by one."""

from __future__ import annotations

import gzip
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shards import PackError, PackOptions
from shards.format.members import Member
from shards.format.tar_reader import TarReader
from shards.packing.sources import Record, archives, open_source
from shards.packing.sources.archives import Archives
from tests.support.pictures import gradient, jpeg
from tests.support.tars import tar_bytes

PHOTO = jpeg(gradient(40, 30, seed=0))


def members(number: int) -> list[tuple[str, bytes]]:
    """An image with a label, one with a label that cannot be read, a duplicate, a hidden one, and other files."""
    return [
        (f"{number}.jpg", PHOTO),
        (f"{number}.cls", b"%d" % (number % 3)),
        (f"{number}_odd.jpg", PHOTO),
        (f"{number}_odd.cls", b"\xff"),
        (f"{number}.jpg", PHOTO),
        (f".cache/{number}.jpg", PHOTO),
        (f"left-out/{number}.jpg", PHOTO),
        (f"{number}.txt", b"a caption"),
    ]


def folder_of_tars(root: Path) -> Path:
    for number in range(6):
        data = tar_bytes(members(number))
        (root / f"{number}.tar").write_bytes(
            data[: data.index(b"left-out")] if number in (2, 4) else data
        )  # two are cut off
    (root / ".hidden.tar").write_bytes(tar_bytes(members(9)))
    return root


def tar_of_tars(root: Path) -> Path:
    inner = [(f"n{number:02}.tar", tar_bytes([(f"{number}.jpg", PHOTO)])) for number in range(5)]
    (root / "all.tar").write_bytes(tar_bytes([*inner, ("n77.tar", tar_bytes([("a.txt", b"no image")]))]))
    return root / "all.tar"


def compressed_tars(root: Path) -> Path:
    for number in range(4):
        (root / f"{number}.tar.gz").write_bytes(gzip.compress(tar_bytes(members(number))))
    return root


def zips(root: Path) -> Path:
    for number in range(4):
        with zipfile.ZipFile(root / f"{number}.zip", "w") as file:
            for name, data in dict(members(number)).items():
                file.writestr(name, data)
    (root / "3.zip").write_bytes((root / "3.zip").read_bytes()[:-30])
    return root


def read(src: Path, workers: int) -> tuple[list[Any], Any, list[str], set[bytes]]:
    """Records, counts, notes and classes of a source."""
    source = open_source(PackOptions(src, src.parent / "set", workers=workers, exclude=("left-out",)))
    found, base = list(source.records()), source.base
    assert isinstance(base, Archives) and base.workers == min(workers, len(os.sched_getaffinity(0)))
    return found, base.counts(), list(source.notes()), set(source.classes())


@pytest.mark.parametrize("make", [folder_of_tars, tar_of_tars, compressed_tars, zips])
def test_processes_find_what_one_finds(make, tmp_path, monkeypatch):
    root = tmp_path / "source"
    root.mkdir()
    src = make(root)
    alone = read(src, workers=1)
    asked: list[Any] = []
    kept = archives.process_map
    monkeypatch.setattr(archives, "_MUCH", 0)
    monkeypatch.setattr(archives, "process_map", lambda *given: asked.append(given[2]) or kept(*given))
    monkeypatch.setattr("shards.packing.sources.cores", lambda: 2)  # also on a machine with one
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert read(src, workers=2) == alone
    assert 2 in asked and len(alone[0]) > 4
    if make is folder_of_tars:
        assert not alone[1].whole and len(alone[1].damaged) == 2 and alone[1].excluded == {"left-out": 4}
    if make is tar_of_tars:
        assert alone[3] == {b"n00", b"n01", b"n02", b"n03", b"n04", b"n77"}


def test_a_source_that_is_not_read_to_its_end_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MUCH", 0)
    source = open_source(PackOptions(folder_of_tars(tmp_path), tmp_path / "set", workers=2))
    source.workers = 2  # type: ignore[attr-defined]
    found = source.records()
    for _ in range(8):
        next(found)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        assert children.read_text().split()
    found.close()  # type: ignore[attr-defined]
    if children.exists():
        deadline = time.monotonic() + 20
        while [pid for pid in children.read_text().split() if _is_worker(pid)]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("make", [folder_of_tars, tar_of_tars])
def test_threads_find_what_one_process_finds(make, tmp_path, monkeypatch):
    """As at a URL; the tests of each source pack from S3, too."""
    root = tmp_path / "source"
    root.mkdir()
    src = make(root)
    alone = read(src, workers=1)
    monkeypatch.setattr(archives, "is_url", lambda place: True)
    monkeypatch.setattr(archives, "joined", os.path.join)
    source = open_source(PackOptions(src, tmp_path / "set", workers=1, exclude=("left-out",)))
    source.root, source._single = str(src), None  # type: ignore[attr-defined]
    if make is tar_of_tars:
        source.root, source._single = str(root), "all.tar"  # type: ignore[attr-defined]
    assert (list(source.records()), source.counts()) == alone[:2]  # type: ignore[attr-defined]


def test_a_thread_that_reads_a_long_tar_ends_when_nobody_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "is_url", lambda place: True)
    monkeypatch.setattr(archives, "joined", os.path.join)
    (tmp_path / "0.tar").write_bytes(tar_bytes(members(0)))
    for number in (1, 2):
        (tmp_path / f"{number}.tar").write_bytes(tar_bytes([(f"{name:05}.jpg", b"") for name in range(3000)]))
    kept = TarReader._is_skipped

    def slowly(reader: TarReader, member: Member) -> bool:
        if member.size == 0:
            time.sleep(0.01)  # the two need half a minute each
        return kept(reader, member)

    monkeypatch.setattr(TarReader, "_is_skipped", slowly)
    names = [Record(b"%d.tar" % number) for number in range(3)]  # a folder has them in any order
    monkeypatch.setattr(archives.NamedFiles, "records", lambda files: iter(names))
    source = open_source(PackOptions(tmp_path, tmp_path / "set", source="tars"))
    found = source.records()
    next(found)
    begun = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 15


def _is_worker(pid: str) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_an_error_of_a_worker_is_that_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MUCH", 0)
    folder_of_tars(tmp_path)
    for number in (7, 8):
        (tmp_path / f"{number}.tar.gz").write_bytes(gzip.compress(tar_bytes([("a.tar", tar_bytes(members(0)))])))
    source = open_source(PackOptions(tmp_path, tmp_path / "set", source="targz"))
    source.workers = 2  # type: ignore[attr-defined]
    with pytest.raises(PackError, match=r"7.tar.gz holds tars; unpack it by gunzip"):
        list(source.records())
