"""Compressed tars: unpacked in parallel, packed like tars, also damaged ones."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.packing import unpacking
from shards.packing.preview import preview
from shards.packing.sources import gzipped
from shards.packing.sources.gzipped import Unzipped
from shards.packing.unpacking import Unpack
from shards.storage.store import open_store
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set

COUNT = 30


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """Three compressed tars, one of them of two that are joined; with labels, and a folder beside them."""
    root = tmp_path_factory.mktemp("tars")
    for number in range(3):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for image in range(number, COUNT, 3):
                data = jpeg(gradient(40 + image, 30, seed=image))
                for name, content in ((f"{image:03d}.jpg", data), (f"{image:03d}.cls", b"%d" % (image % 4))):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        whole = file.getvalue()
        half = len(whole) // 2
        parts = [gzip.compress(part, mtime=0) for part in ((whole[:half], whole[half:]) if number == 1 else (whole,))]
        path = root / ("deep/2.tgz" if number == 2 else f"{number}.tar.gz")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(parts))
    (root / "notes.txt.gz").write_bytes(gzip.compress(b"notes"))
    return root


@pytest.fixture(scope="module")
def packed(tars, tmp_path_factory) -> Path:
    return pack_set(tars, tmp_path_factory.mktemp("packed") / "set", shard_size=8, source="targz")


def found(out: Path) -> dict[str, tuple[bytes, int]]:
    with ShardSet(out) as opened:
        labels = opened.labels(np.arange(len(opened)))
        return {opened.source(i): (opened.read(i), int(label)) for i, label in enumerate(labels)}


def test_the_images_labels_and_names_are_those_of_the_tars(packed):
    names = ["0.tar.gz", "1.tar.gz", "deep/2.tgz"]
    assert found(packed) == {
        f"{names[image % 3]}/{image:03d}.jpg": (jpeg(gradient(40 + image, 30, seed=image)), image % 4)
        for image in range(COUNT)
    }
    assert not (packed / "packing.partial").exists()


def test_two_workers_write_the_same_bytes(tars, packed, tmp_path):
    assert same_files(packed, pack_set(tars, tmp_path / "set", shard_size=8, source="targz", workers=2))


@pytest.mark.long
def test_from_s3_to_s3(tars, packed, s3):
    store = open_store(f"{s3}/tars")
    for path in tars.rglob("*.*gz"):
        store.write(str(path.relative_to(tars)), path.read_bytes())
    pack_set(f"{s3}/tars", f"{s3}/set", shard_size=8, source="targz")  # type: ignore[arg-type]
    out = open_store(f"{s3}/set")
    assert {name: out.read(name) for name in out.names()} == {path.name: path.read_bytes() for path in packed.iterdir()}


def test_a_killed_packing_keeps_the_tars_that_are_unpacked(tars, packed, tmp_path, monkeypatch):
    out = tmp_path / "set"

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shards.packing.pack.planned", killed)
        with pytest.raises(KeyboardInterrupt):
            pack_set(tars, out, shard_size=8, source="targz")
    (folder,) = (out / "packing.partial").glob("staged-*")
    (folder / "1.tar.gz.end").unlink()  # as if the kill had come before this tar was complete
    done: list[str] = []
    kept = unpacking.run_tasks

    def run(tasks, *arguments):
        done.extend(task.path for task in tasks if isinstance(task, Unpack))
        kept(tasks, *arguments)

    monkeypatch.setattr(unpacking, "run_tasks", run)
    pack_set(tars, out, shard_size=8, source="targz")
    assert done == ["1.tar.gz"]
    assert same_files(packed, out)
    pack_set(tars, out, shard_size=8, source="targz")  # complete: nothing is unpacked again
    assert done == ["1.tar.gz"] and not (out / "packing.partial").exists()


@pytest.mark.parametrize("damage", ["truncated", "damaged"])
def test_of_a_damaged_tar_the_images_before_the_damage_are_packed(tars, packed, tmp_path, damage, capsys):
    whole = (tars / "0.tar.gz").read_bytes()
    half = len(whole) // 2
    broken = whole[:half] if damage == "truncated" else whole[:half] + b"\xff" * 100 + whole[half + 100 :]
    src = tmp_path / "0.tar.gz"
    src.write_bytes(broken)
    planned = preview(PackOptions(src, tmp_path / "set"))[0].images
    pack(PackOptions(src, tmp_path / "set", workers=1))
    names = found(tmp_path / "set")
    assert 0 < len(names) < 10 and names.items() <= found(packed).items() and len(names) == planned
    (line,) = (tmp_path / "set" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "0.tar.gz" and json.loads(line)["reason"].startswith(f"{damage}: ")
    assert "1 tar is damaged; its images behind the damage are missing: 0.tar.gz" in capsys.readouterr().out
    pack_set(src, tmp_path / "set")  # of the complete set the plan is made by reading forwards: it is the same


def test_a_dry_run_counts_without_unpacking(tars, tmp_path):
    plan, lines = preview(PackOptions(tars, tmp_path / "set", source="targz"))
    assert plan.images == COUNT and plan.classes == ("0", "1", "2", "3")
    assert any(line.startswith("reading    3 compressed tars: the output needs at least") for line in lines)
    assert any(line == "ignored    1 file of other kinds" for line in lines)


def test_the_kind_is_detected_and_room_is_needed(tars, tmp_path, monkeypatch):
    class Usage:
        free = 10

    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: Usage())
    for src in (tars / "0.tar.gz", tars / "deep"):
        with pytest.raises(PackError, match=r"needs room for the unpacked tars, at least .* kB, .* 10 B are free"):
            pack_set(src, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_steps_of_any_size_give_the_same_bytes(tars):
    data = (tars / "1.tar.gz").read_bytes()
    expected = gzip.decompress(data)
    assert Unzipped(io.BytesIO(data)).read() == expected
    tar, parts = Unzipped(io.BytesIO(data)), []
    while part := tar.chunk(777):
        parts.append(part)
    assert b"".join(parts) == expected and not tar.fault


@pytest.mark.parametrize("place", [None, 0.5, 0.9])
def test_zlib_ng_inflates_what_zlib_does_also_before_damage(tars, monkeypatch, place):
    """Unpacked tars do not depend on the extra `zip`: whole, with one bit flipped, and cut off."""
    data = bytearray((tars / "0.tar.gz").read_bytes())
    if place is not None:
        data[int(place * len(data))] ^= 4
    for content in (bytes(data), bytes(data[:-100])):
        found = []
        for module in (zlib, pytest.importorskip("zlib_ng.zlib_ng")):
            monkeypatch.setattr(gzipped, "inflating", module)
            unzipped = Unzipped(io.BytesIO(content))
            found.append((unzipped.read(), unzipped.fault))
        assert found[0] == found[1]
