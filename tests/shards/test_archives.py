"""Zips and tars of tars as sources: their members, their faults, and the bytes that come out of them."""

from __future__ import annotations

import io
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.images.encode import Rejected
from shards.packing.fetch import fetch_each
from shards.packing.plan import Entry
from shards.packing.preview import preview
from shards.packing.sources import Record, open_source
from shards.storage.store import open_store
from tests.support.folders import same_files
from tests.support.pictures import encoded, gradient, jpeg
from tests.support.struck import struck
from tests.support.tars import tar_bytes, write_tar

IMAGE = jpeg(gradient())
SOFT = encoded(gradient(), "BMP")  # which deflate makes smaller


class Unseekable(io.RawIOBase):
    """A pipe: zipfile writes sizes and checksums behind the data."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += bytes(data)
        return len(data)


def zip_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, file: io.RawIOBase | None = None) -> bytes:
    buffer = file or io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:  # type: ignore[arg-type]
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.data if isinstance(buffer, Unseekable) else buffer.getvalue()  # type: ignore[attr-defined]


def read(
    src: Path | str, **changes
) -> tuple[list[tuple[str, str | None]], dict[str, bytes], dict[str, str], list[str]]:
    """Names with labels in order, contents by name, problems by name, and the notes."""
    source = open_source(PackOptions(src, "out", **changes))
    found = list(source.records())
    records = [record for record in found if isinstance(record, Record)]
    entries = [Entry(record.path, -1, record.member, record.offset, record.size) for record in records]
    fetched = {entry.member.decode(): data for entry, data in fetch_each(source.root, entries, kind=source.kind)}
    contents = {name: data for name, data in fetched.items() if isinstance(data, bytes)}
    problems = {found.source: found.reason for found in found if not isinstance(found, Record)}
    problems |= {name: str(data) for name, data in fetched.items() if isinstance(data, Rejected)}
    labels = [(record.member.decode(), None if record.label is None else record.label.decode()) for record in records]
    return labels, contents, problems, list(source.notes())


def stored(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def with_zip64(members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    data = zip_bytes(members)
    assert b"PK\6\6" in data
    return data


def with_extra(members: dict[str, bytes]) -> bytes:
    """Headers of members that are longer than a reader would guess."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.extra, info.compress_type = b"\xfe\xca\xe8\x03" + bytes(1000), zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


FORMS: dict[str, Callable] = {
    "stored": lambda members, _: zip_bytes(members, zipfile.ZIP_STORED),
    "deflated": lambda members, _: zip_bytes(members),
    "streamed": lambda members, _: zip_bytes(members, file=Unseekable()),
    "zip64": with_zip64,
    "extra": lambda members, _: with_extra(members),
    "behind a program": lambda members, _: b"#!program\n" * 100 + zip_bytes(members),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_zip_gives_the_bytes_of_its_members(tmp_path, monkeypatch, form):
    members = {"cats/1.jpg": IMAGE, "cats/größe.bmp": SOFT, "dogs/x/2.JPEG": IMAGE + b"end", "notes.txt": b"no image"}
    labels, contents, problems, notes = read(stored(tmp_path / "a.zip", FORMS[form](members, monkeypatch)))
    assert labels == [("cats/1.jpg", "cats"), ("cats/größe.bmp", "cats"), ("dogs/x/2.JPEG", "dogs")]
    assert contents == {name: data for name, data in members.items() if name != "notes.txt"}
    assert (problems, notes) == ({}, [])


def test_members_that_cannot_be_packed_are_named(tmp_path, monkeypatch):
    data = bytearray(zip_bytes({"good.jpg": IMAGE, "secret.jpg": IMAGE, "broken.bmp": SOFT, "changed.jpg": IMAGE}))
    # the flag of encryption, in both headers
    data[data.index(b"secret.jpg") - 24] |= 1
    data[data.rindex(b"secret.jpg") - 38] |= 1
    place = data.index(b"broken.bmp") + len(b"broken.bmp")
    data[place : place + 40] = b"\xff" * 40
    place = data.index(b"changed.jpg") - 16
    data[place : place + 4] = b"none"  # the checksum
    other = zip_bytes({"b.jpg": IMAGE}, zipfile.ZIP_BZIP2)
    stored(tmp_path / "zips" / "a.zip", bytes(data))
    stored(tmp_path / "zips" / "b.zip", other)
    stored(tmp_path / "zips" / "cut.zip", zip_bytes({"c.jpg": IMAGE})[:-30])
    labels, contents, problems, notes = read(tmp_path / "zips")
    assert [name for name, _ in labels] == ["good.jpg", "broken.bmp", "changed.jpg"]
    assert list(contents) == ["good.jpg"]
    cut = "damaged: no directory of a zip at its end (File is not a zip file); is it cut off?"
    assert problems == {
        "a.zip/secret.jpg": "encrypted: unpack the zip with its password, and pack the folder",
        "b.zip/b.jpg": "compressed by bzip2 (12): write the zip with deflate, or without compression",
        "cut.zip": cut,
        "broken.bmp": "damaged: cannot be inflated (invalid block type)",
        "changed.jpg": "damaged: its checksum differs from the zip's",
    }
    assert notes == [f"1 zip is damaged; its images behind the damage are missing: cut.zip: {cut}"]
    with pytest.raises(PackError, match=r"cannot read --src .*cut\.zip: damaged: no directory"):
        read(tmp_path / "zips" / "cut.zip")
    monkeypatch.chdir(tmp_path / "zips")
    with pytest.raises(PackError, match=r"cannot read --src cut\.zip: damaged"):  # as it was typed
        read(Path("cut.zip"))


def test_links_hidden_and_odd_names_in_zips(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "a.jpg")
        archive.mkdir("folder.jpg") if hasattr(archive, "mkdir") else archive.writestr("folder.jpg/", b"")
        for name in ("__MACOSX/a/._1.jpg", "a/.x.jpg", "a/b/thumbs.db", "a/b/1.jpg", "skip/2.jpg"):
            archive.writestr(name, IMAGE)
        windows = zipfile.ZipInfo("x")
        windows.filename, windows.create_system = "c\\d\\3.jpg", 0
        archive.writestr(windows, IMAGE)
    path = stored(tmp_path / "a.zip", buffer.getvalue())
    labels, contents, problems, notes = read(path, exclude=["skip/*"])
    assert labels == [("a/b/1.jpg", "a"), ("c/d/3.jpg", "c")]
    assert set(contents.values()) == {IMAGE}
    assert problems == {"a.zip/link.jpg": "link: not a regular file of the zip"}
    assert notes == [
        "left out 2 hidden or system folders and files (1 .*, 1 __MACOSX); --include-hidden packs them",
        "--exclude 'skip/*' left out 1 file or folder",
    ]


def test_the_kind_of_a_zip_is_found_by_its_content_and_zips_beside_tars_are_asked_about(tmp_path):
    assert read(stored(tmp_path / "download", zip_bytes({"a.jpg": IMAGE})))[0] == [("a.jpg", None)]
    assert read(stored(tmp_path / "zips" / "0.zip", zip_bytes({"a.jpg": IMAGE})).parent)[0] == [("a.jpg", None)]
    write_tar(tmp_path / "zips" / "0.tar", {"b.jpg": IMAGE})
    with pytest.raises(PackError, match="holds archives of several kinds; choose with --source tars or --source zips"):
        read(tmp_path / "zips")
    assert read(tmp_path / "zips", source="zips")[0] == [("a.jpg", None)]
    assert [name for name, _ in read(tmp_path / "zips", source="tars")[0]] == ["b.jpg"]


def test_inner_tars_are_the_classes_of_a_tar_of_tars(tmp_path):
    """Also one without an image; one that has labels of its own keeps them."""
    labelled = tar_bytes({"0.jpg": IMAGE, "0.cls": b"fish"})
    members = {"n2.tar": tar_bytes({"a.JPEG": IMAGE, "b.JPEG": SOFT}), "x/n1.tar": tar_bytes({"./c/a.JPEG": IMAGE})}
    src = write_tar(tmp_path / "all.tar", {**members, "n3.tar": tar_bytes({}), "n4.tar": labelled, "readme.md": b""})
    labels, contents, problems, notes = read(src)
    assert labels == [
        ("n2.tar/a.JPEG", "n2"),
        ("n2.tar/b.JPEG", "n2"),
        ("x/n1.tar/./c/a.JPEG", "n1"),
        ("n4.tar/0.jpg", "fish"),
    ]
    assert contents == dict(zip([name for name, _ in labels], [IMAGE, SOFT, IMAGE, IMAGE], strict=True))
    assert (problems, notes) == ({}, [])
    plan, lines = preview(PackOptions(src, tmp_path / "out"))
    assert plan.classes == ("fish", "n1", "n2", "n3")
    assert "classes    4: fish, n1, n2, n3" in lines and "ignored    1 file of other kinds" in lines
    assert [name for name, _ in read(src, exclude=["n2.tar", "*/c/*"])[0]] == ["n4.tar/0.jpg"]
    # with images of its own it is an ordinary tar, as it has always been
    mixed = write_tar(tmp_path / "mixed.tar", {"n2.tar": members["n2.tar"], "own.jpg": IMAGE})
    assert read(mixed)[0] == [("own.jpg", None)]


def test_a_damaged_inner_tar_costs_what_is_behind_the_damage(tmp_path):
    whole = tar_bytes({f"{n}.jpg": IMAGE for n in range(3)})
    src = write_tar(
        tmp_path / "all.tar", {"a.tar": whole, "b.tar": whole[:3000], "c.tar": b"none" * 500, "d.tar": whole}
    )
    labels, contents, problems, notes = read(src)
    assert [name for name, _ in labels] == [
        *(f"a.tar/{n}.jpg" for n in range(3)),
        "b.tar/0.jpg",
        *(f"d.tar/{n}.jpg" for n in range(3)),
    ]
    assert set(contents.values()) == {IMAGE}
    assert {name: reason.split(" (")[0] for name, reason in problems.items()} == {
        "all.tar/b.tar": "truncated: it ends at byte 3,000, within 1.jpg",
        "all.tar/c.tar": "damaged: not a tar",
    }
    assert notes[0].startswith("2 tars are damaged; their images behind the damage are missing: all.tar/b.tar: trunc")
    assert preview(PackOptions(src, tmp_path / "out"))[0].classes == ("a", "b", "c", "d")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_folder_and_its_archive_make_the_same_images_whatever_the_workers(tmp_path, kind):
    """And from S3's ranges, and where a packing is continued: the same bytes."""
    members = {f"{name}/{n}.jpg": jpeg(gradient(seed=n)) for n in range(6) for name in ("cat", "dog")}
    for name, data in members.items():
        stored(tmp_path / "folder" / name, data)
    if kind == "zip":
        src = stored(tmp_path / "a.zip", zip_bytes(members))
    else:
        inner = [
            {name.split("/")[1]: data for name, data in members.items() if name.startswith(c)} for c in ("cat", "dog")
        ]
        src = write_tar(tmp_path / "a.tar", dict(zip(("cat.tar", "dog.tar"), map(tar_bytes, inner), strict=True)))
    out = tmp_path / "out"
    pack(PackOptions(src, out, shard_size=4, workers=1), progress=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("manifest.json", "shard-000001.json", "shard-000001.tar"):
        (out / name).unlink()
    pack(PackOptions(src, out, shard_size=4, workers=2), progress=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    pack(PackOptions(tmp_path / "folder", tmp_path / "plain", shard_size=4, workers=1), progress=False)

    def images(folder: Path) -> list[tuple[int, bytes]]:
        with ShardSet(folder) as found:
            assert found.classes == ("cat", "dog")
            return sorted(zip(found.labels(np.arange(12)).tolist(), map(found.read, range(12)), strict=True))

    assert images(out) == images(tmp_path / "plain")


@pytest.mark.parametrize("kind", ["zips", "tars"])
def test_archives_in_a_bucket_are_read_by_ranges(tmp_path, s3, s3_server, kind):
    members = {f"{n}.jpg": jpeg(gradient(seed=n)) for n in range(4)}
    data = (
        zip_bytes(members) if kind == "zips" else tar_bytes({"a.tar": tar_bytes(members), "b.tar": tar_bytes(members)})
    )
    name = {"zips": "a.zip", "tars": "all.tar"}[kind]
    src = stored(tmp_path / name, data)
    open_store(s3).write(name, data)
    pack(PackOptions(src, tmp_path / "local", workers=1), progress=False)
    pack(PackOptions(f"{s3}/{name}", tmp_path / "remote", workers=1), progress=False)
    assert same_files(tmp_path / "local", tmp_path / "remote")
    assert read(f"{s3}/{name}", exclude=["0.jpg"]) == read(src, exclude=["0.jpg"])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_ray_makes_the_same_set_of_archives(tmp_path, kind):
    pytest.importorskip("ray", reason="Ray is not installed")
    members = {f"{n}.jpg": jpeg(gradient(seed=n)) for n in range(8)}
    data = (
        zip_bytes(members) if kind == "zip" else tar_bytes({"a.tar": tar_bytes(members), "b.tar": tar_bytes(members)})
    )
    src = stored(tmp_path / f"a.{kind}", data)
    for executor in ("local", "ray"):
        pack(PackOptions(src, tmp_path / executor, shard_size=3, workers=2, executor=executor), progress=False)
    assert same_files(tmp_path / "local", tmp_path / "ray")


def test_a_zip_that_claims_little_and_inflates_to_much_is_stopped(tmp_path, monkeypatch):
    from shards.packing import members

    monkeypatch.setattr(members, "MAX_FILE", 1000)
    data = bytearray(zip_bytes({"bomb.jpg": bytes(100_000)}))
    for place in (22, data.rindex(b"PK\1\2") + 24):  # the size in both headers
        data[place : place + 4] = (10).to_bytes(4, "little")
    problems = read(stored(tmp_path / "a.zip", bytes(data)))[2]
    assert problems == {"bomb.jpg": "too large: a file of more than 1,000 bytes"}


def test_splits_in_a_zip_are_named_with_the_flags_for_one_of_them(tmp_path):
    members = {f"{split}/{name}/1.jpg": IMAGE for split in ("train", "val") for name in ("cat", "dog")}
    src = stored(tmp_path / "a.zip", zip_bytes(members))
    plan, lines = preview(PackOptions(src, tmp_path / "out"))
    assert plan.classes == ("train", "val")
    says = "the classes train, val look like splits; to pack one split, leave out the others: --exclude 'val/*'"
    assert f"note       {says} --label-from folder:2" in lines
    assert preview(PackOptions(src, "out", exclude=["val/*"], label_from="folder:2"))[0].classes == ("cat", "dog")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_killed_while_it_packs_an_archive_the_set_is_the_same(tmp_path, kind):
    from tests.shards.test_interruptions import Packing, assert_whole_or_absent, finished

    members = {f"{n}.jpg": jpeg(gradient(300, 200, seed=n)) for n in range(60)}
    inner = {f"{name}.tar": tar_bytes(members) for name in "abcd"}
    folders = {f"{name}/{member}": data for name in "abcd" for member, data in members.items()}
    src = stored(tmp_path / f"all.{kind}", zip_bytes(folders) if kind == "zip" else tar_bytes(inner))
    finished(Packing(src, tmp_path / "undisturbed", "local", 2))
    for _ in range(3):
        packing = Packing(src, tmp_path / "out", "local", 2, strike=struck(signal.SIGKILL, 1))
        assert packing.result()[0] == -signal.SIGKILL
        assert_whole_or_absent(tmp_path / "out", tmp_path / "undisturbed")
    finished(Packing(src, tmp_path / "out", "local", 2))
    assert same_files(tmp_path / "undisturbed", tmp_path / "out")
