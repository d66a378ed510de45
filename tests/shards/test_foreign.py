"""Tars made by others become sets: webdataset's writers, img2dataset's layout, GNU and PAX tars, and damaged ones."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import PackError, ShardSet, ShardSetError
from shards.foreign.indexing import index_tars
from shards.format.contents import Contents
from shards.verify import verify
from tests.support import pictures
from tests.support.runs import metrics
from tests.support.tars import Link, cut_off, member_places, write_tar


def index(folder: Path, **options):
    return index_tars(folder, say=lambda text: None, **{"workers": 1, **options})


def contents(folder: Path) -> list[tuple[str, str, bytes, str | None, tuple[int, int]]]:
    """Tar, key, JPEG, class name and size of each sample."""
    with ShardSet(folder) as found:
        ids = np.arange(len(found))
        labels, sizes = found.labels(ids).tolist(), found.sizes(ids).tolist()
        return [
            (*found.locate(i), found.check(i), found.classes[labels[i]] if labels[i] >= 0 else None, tuple(sizes[i]))
            for i in range(len(found))
        ]


def left_out(folder: Path) -> dict[str, str]:
    lines = (folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["source"]: line["reason"] for line in map(json.loads, lines)}


def problems(folder: Path, **options) -> list[str]:
    with ShardSet(folder) as shard_set:
        return [str(problem) for found in verify(shard_set, workers=2, **options) for problem in found]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """JPEGs of 60 to 83 pixels by 48."""
    return [pictures.jpeg(pictures.gradient(60 + number, 48, seed=number)) for number in range(24)]


@pytest.fixture(scope="module")
def webdataset_tars(photos, tmp_path_factory) -> Path:
    """Three tars by webdataset's ShardWriter, named as in its examples; not to be changed."""
    webdataset = pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("webdataset")
    with webdataset.ShardWriter(f"{folder}/shard-%06d.tar", maxcount=8, verbose=0) as writer:
        for number, photo in enumerate(photos):
            writer.write({"__key__": f"photo{number:04d}", "jpg": photo, "cls": number % 5})
    return folder


@pytest.fixture
def copy(webdataset_tars, tmp_path) -> Path:
    return shutil.copytree(webdataset_tars, tmp_path / "copy")


@pytest.fixture
def indexed(copy) -> Path:
    index(copy)
    return copy


def test_tars_of_webdataset_are_read_verified_and_described(copy, photos, cli):
    before = files(copy)
    done = cli("index", copy, "--workers", "1")
    assert done.returncode == 0
    assert "indexed 24 images in 3 tars, 5 classes" in done.stdout
    assert {name: data for name, data in files(copy).items() if name.endswith(".tar")} == before
    assert contents(copy) == [
        (f"shard-{i // 8:06d}.tar", f"photo{i:04d}", photos[i], str(i % 5), (48, 60 + i)) for i in range(24)
    ]
    done = cli("verify", copy, "--decode", "--workers", "1")
    assert done.returncode == 0
    assert "24 images in 3 shards: all as packed, and every image can be decoded" in done.stdout
    done = cli("info", copy)
    assert done.returncode == 0
    text = done.stdout
    for part in ("indexed tars", "24 in 3 shards", "class", "60 to 83 pixels", "3 tars", "bits a pixel"):
        assert part in text
    done = cli("index", copy)
    assert done.returncode == 0
    assert "indexed already" in done.stdout


def test_tars_of_img2dataset(photos, tmp_path):
    """Its writer's layout: NNNNN.tar of KEY.jpg, KEY.json, KEY.txt by webdataset's TarWriter; table, stats beside."""
    webdataset = pytest.importorskip("webdataset")
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard:05d}.tar")) as writer:
            for number in range(shard * 12, shard * 12 + 12):
                facts = {"url": "https://example.org/%d", "key": f"{number:09d}", "status": "success", "exif": "{}"}
                facts |= {"label": ["cat", "Dog", "été"][number % 3]} if number else {}
                sample = {"__key__": f"{number:09d}", "jpg": photos[number], "txt": "a caption"}
                writer.write({**sample, "json": json.dumps(facts, indent=4)})
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    manifest = index(tmp_path)
    assert manifest.classes == ("Dog", "cat", "été")
    names = [None] + [["cat", "Dog", "été"][number % 3] for number in range(1, 24)]
    assert contents(tmp_path) == [
        (f"{i // 12:05d}.tar", f"{i:09d}", photos[i], names[i], (48, 60 + i)) for i in range(24)
    ]
    assert problems(tmp_path) == []


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_long_names_folders_dots_and_any_encoding(photos, tmp_path, form):
    long = "folder/" * 30 + "x" * 120
    keys = [long, "a.b.c", "a.b.d", "./sub/été 1", "50% off", "n\udcffx", "UPPER", "one"]
    members = {}
    for number, key in enumerate(keys):
        members[f"{key}.{'JPG' if key == 'UPPER' else 'jpg'}"] = photos[number]
        members[f"{key}.cls"] = f"class of {number}\n".encode()
    del members["one.cls"]
    members |= {"folder/.hidden.jpg": b"x", "README": b"x", "__meta__.json": b"{}", "one.txt": b"a caption"}
    write_tar(tmp_path / "any name at all.tar", members, form)
    index(tmp_path)
    shown = [key.replace("\udcff", r"\xff") for key in keys]
    expected = [
        ("any name at all.tar", shown[i], photos[i], None if keys[i] == "one" else f"class of {i}", (48, 60 + i))
        for i in range(8)
    ]
    assert contents(tmp_path) == expected
    assert problems(tmp_path) == []
    assert left_out(tmp_path) == {}


def test_a_folder_as_gnu_tar_packs_it(photos, tmp_path):
    (tmp_path / "src" / "deep").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "src" / "deep" / f"{number}.jpg").write_bytes(photos[number])
        (tmp_path / "src" / "deep" / f"{number}.cls").write_text(str(number * 100))
    (tmp_path / "out").mkdir()
    names = ["deep/" + name for name in ("3.cls", "0.jpg", "1.jpg", "2.jpg", "0.cls", "3.jpg", "1.cls", "2.cls")]
    subprocess.run(["tar", "cf", tmp_path / "out" / "x.tar", *names], cwd=tmp_path / "src", check=True)
    index(tmp_path / "out")
    found = contents(tmp_path / "out")
    assert [(key, label) for _, key, _, label, _ in found] == [(f"deep/{i}", str(i * 100)) for i in range(4)]


def test_unusable_images_are_left_out_with_a_cause(photos, tmp_path):
    picture = pictures.gradient()
    exif = Image.Exif()
    exif[0x0112] = 6
    members = {
        "00.jpg": photos[0],
        "01.json": b"{}",
        "01.txt": b"no image",
        "02.jpg": pictures.jpeg(picture.convert("CMYK")),
        "03.png": pictures.encoded(picture, "PNG"),
        "04.jpg": pictures.jpeg(picture, exif=exif),
        "05.jpg": photos[5][:900],
        "06.jpg": b"",
        "07.jpg": b"<html>404</html>",
        "08.jpg": photos[8],
        "08.json": b"{broken",
        "09.jpg": photos[9],
        "09.json": b'{"label": [1, 2]}',
        "10.jpg": photos[10] + b"behind the end",
        "10.cls": b"-1",
        "11.jpg": photos[11],
        "11.jpeg": photos[12],
        "12.jpg": photos[13],
        "12.seg.png": pictures.encoded(picture, "PNG"),
        "13.jpg": pictures.jpeg(pictures.gradient(5, 5)),
    }
    write_tar(tmp_path / "a.tar", [*members.items(), ("00.jpg", photos[1]), ("14.jpg", Link("00.jpg"))])
    index(tmp_path)
    assert [(key, data) for _, key, data, _, _ in contents(tmp_path)] == [
        ("00", photos[0]),
        ("10", photos[10]),
        ("11", photos[11]),
        ("12", photos[13]),
    ]
    causes = {source.removeprefix("a.tar/"): reason for source, reason in left_out(tmp_path).items()}
    begins = {
        "01": "no image: json, txt alone",
        "02.jpg": "needs converting: a JPEG of mode CMYK",
        "03.png": "needs converting: PNG",
        "04.jpg": "needs converting: EXIF orientation 6",
        "05.jpg": "truncated",
        "06.jpg": "empty",
        "07.jpg": "not an image: HTML",
        "08.jpg": "label: cannot read 08.json",
        "09.jpg": "label: cannot read 09.json: its label is neither a number nor text",
        "11.jpeg": "duplicate: 11.jpg has the same key",
        "13.jpg": "too small",
        "00.jpg": "duplicate: an earlier member has the same name",
        "14.jpg": "link",
    }
    assert {name: reason[: len(begins.get(name, reason))] for name, reason in causes.items()} == begins
    assert problems(tmp_path, decode=False) == []


def test_damaged_tars_keep_their_whole_samples(photos, tmp_path, cli):
    for name in "abcdef":
        write_tar(tmp_path / f"{name}.tar", {f"{i}.jpg": photo for i, photo in enumerate(photos[:6])})
    offsets = [member.offset for member in member_places(tmp_path / "a.tar").values()]
    cut_off(tmp_path / "a.tar", offsets[4] + 700)
    with open(tmp_path / "b.tar", "r+b") as file:
        file.seek(offsets[3])
        file.write(b"\xaa" * 512)
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 1000)
    (tmp_path / "d.tar").write_bytes(b"")
    with open(tmp_path / "e.tar", "ab") as file:
        file.write((tmp_path / "f.tar").read_bytes())
    assert cli("index", tmp_path, "--workers", "1").returncode == 0
    assert [record.samples for record in ShardSet(tmp_path).manifest.records] == [4, 3, 0, 0, 6, 6]
    causes = left_out(tmp_path)
    # e.tar is joined with f.tar, whose members have the same names
    assert sorted(causes) == ["a.tar", "b.tar", "c.tar", "d.tar", *(f"e.tar/{i}.jpg" for i in range(6))]
    assert causes["a.tar"].startswith("truncated: it ends at byte")
    assert causes["b.tar"].startswith(f"damaged: no tar header at byte {offsets[3]:,}")
    assert causes["c.tar"].startswith("damaged: not a tar")
    assert causes["e.tar/5.jpg"] == "duplicate: an earlier member has the same name"
    assert problems(tmp_path, decode=False) == []
    assert not (tmp_path / "c.npy").exists()


def test_any_number_of_workers_gives_the_same_files(indexed, tmp_path, webdataset_tars):
    other = Path(shutil.copytree(webdataset_tars, tmp_path / "other"))
    index(other, workers=2)
    assert files(other) == files(indexed)


KILLED = """
import os, signal, sys
from pathlib import Path
from shards.foreign.indexing import index_tars

def say(text):
    print(text, flush=True)
    if text.startswith("1 of "):
        os.kill(os.getpid(), signal.SIGKILL)

index_tars(Path(sys.argv[1]), workers=1, say=say)
"""


def test_killed_indexings_end_in_the_same_files(indexed, tmp_path, webdataset_tars):
    """Each ends itself when it has read one more tar: another process could be too late to end it."""
    folder = Path(shutil.copytree(webdataset_tars, tmp_path / "folder"))
    for number in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert killed.stdout.splitlines()[-1].startswith(f"1 of {3 - number}: shard-00000{number}.tar")
        assert (folder / "indexing.partial").exists()
        assert not (folder / "manifest.json").exists()
    line = [sys.executable, "-m", "shards.cli", "index", str(folder), "--workers", "1"]
    last = subprocess.run(line, check=True, capture_output=True, text=True)
    assert last.stdout.startswith("continuing: 2 of 3 tars have been read already")
    assert files(folder) == files(indexed)


def test_an_interrupted_indexing_continues_where_it_stopped(indexed, tmp_path, webdataset_tars):
    folder = Path(shutil.copytree(webdataset_tars, tmp_path / "folder"))
    said: list[str] = []

    def interrupt(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_tars(folder, workers=1, say=interrupt)
    with pytest.raises(ShardSetError):
        ShardSet(folder)
    said.clear()
    index_tars(folder, workers=1, say=said.append)
    assert said[0] == "continuing: 2 of 3 tars have been read already"
    assert files(folder) == files(indexed)


def test_new_and_changed_tars_are_named(indexed, photos):
    with pytest.raises(PackError, match=r"indexed with --check True; use --overwrite"):
        index(indexed, check=False)
    write_tar(indexed / "more.tar", {"x.jpg": photos[0]})
    with pytest.raises(PackError, match=r"held 3 tars of .* \(now 4 tars of .*--overwrite"):
        index(indexed)
    assert index(indexed, overwrite=True).samples == 25
    assert problems(indexed) == []


def test_existing_files_are_not_replaced(copy, photos, packed, tmp_path):
    (copy / "shard-000001.json").write_text('{"mine": 1}')
    (copy / "shard-000001.idx").write_text("v1.2 0\n")
    with pytest.raises(PackError, match=r"holds shard-000001\.idx, shard-000001\.json, which would be replaced"):
        index(copy)
    assert (copy / "shard-000001.json").read_text() == '{"mine": 1}'
    index(copy, overwrite=True)
    assert problems(copy) == []
    with pytest.raises(PackError, match="was packed by fastmoco pack and has indexes"):
        index(packed)
    for name in ("empty", "outer/inner"):
        (tmp_path / name).mkdir(parents=True)
    write_tar(tmp_path / "outer/inner/x.tar", {"x.jpg": photos[0]})
    write_tar(tmp_path / "manifest.tar", {"a.jpg": pictures.jpeg(pictures.gradient())})
    with pytest.raises(PackError, match=r"manifest\.tar in .* would have its record in manifest\.json, .*; rename it"):
        index(tmp_path)
    (tmp_path / "manifest.tar").unlink()
    with pytest.raises(PackError, match=r"no tars \(\*\.tar\) in"):
        index(tmp_path / "empty")
    with pytest.raises(PackError, match=r"inner has some: index that"):
        index(tmp_path / "outer")
    write_tar(tmp_path / "empty/none.tar", {"x.txt": b""})
    with pytest.raises(PackError, match=r"none of 1 tar holds a usable image; .*quarantine\.jsonl gives the reasons"):
        index(tmp_path / "empty")


def test_packing_never_removes_indexed_tars(indexed, folder, cli):
    done = cli("--src", folder, "--out", indexed, "--overwrite", "--workers", "1")
    assert done.returncode == 2
    assert "holds indexed tars, which are never replaced" in done.stderr
    assert problems(indexed) == []


def test_damage_names_tar_and_key(indexed, photos):
    rows = np.load(indexed / "shard-000001.npy")
    data = bytearray((indexed / "shard-000001.tar").read_bytes())
    data[int(rows["offset"][3]) + 400] ^= 0x40
    (indexed / "shard-000001.tar").write_bytes(data)
    rows = np.load(indexed / "shard-000002.npy")
    rows["label"][2] += 1
    np.save(indexed / "shard-000002.npy", rows)
    lines = (indexed / "shard-000000.idx").read_bytes().replace(b"photo0005.cls", b"photo0006.cls")
    (indexed / "shard-000000.idx").write_bytes(lines)
    found = problems(indexed)
    assert [text.split(": ")[0] for text in found] == [
        "shard-000000.idx key photo0005",
        "shard-000001.tar key photo0011",
        "shard-000002.npy key photo0018",
    ]
    (indexed / "shard-000001.idx").unlink()
    assert any("shard-000001.idx: cannot read" in text for text in problems(indexed))
    with ShardSet(indexed) as shard_set:
        assert shard_set.locate(11) == ("shard-000001.tar", "unknown, row 3")
        assert shard_set.read(12) == photos[12]


def test_two_indexers_on_one_folder(copy):
    (copy / "indexing.partial").mkdir()
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); input()"
    line = [sys.executable, "-c", code, str(copy / "indexing.partial" / "lock")]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(PackError, match="being indexed by another process"):
        index(copy)
    process.communicate("\n")
    assert index(copy).samples == 24


@pytest.mark.dali
def test_dali_reads_the_index(photos, tmp_path):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    members = {}
    for number in range(8):
        members |= {f"a.b {number}.cls": b"%d" % number, f"a.b {number}.jpg": photos[number]}
    write_tar(tmp_path / "x.tar", members)
    index(tmp_path)

    @pipeline_def(batch_size=8, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def read():
        components = fn.readers.webdataset(
            paths=[str(tmp_path / "x.tar")],
            index_paths=[str(tmp_path / "x.idx")],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        return tuple(components)

    pipeline = read()
    pipeline.build()
    images, labels = ([np.asarray(item).tobytes() for item in output] for output in pipeline.run())
    assert (images, labels) == (photos[:8], [b"%d" % number for number in range(8)])


def test_a_set_of_indexed_tars_is_trained_on(indexed, tmp_path, command):
    flags = ["--recipe", "demo", "--steps", 3, "--batch-size", 8, "--image-size", 32, "--queue-size", 64]
    flags += ["--pipeline", "torch", "--precision", "fp32", "--arch", "resnet18", "--knn-every", 0]
    command(sys.executable, "-m", "fastmoco.train", "--shards", indexed, "--out", tmp_path / "run", *flags)
    steps = metrics(tmp_path / "run")
    assert max(line["step"] for line in steps) == 3


def test_members_belong_to_the_images_of_their_key(tmp_path):
    names = ["a.jpg", "a.cls", "a.seg.png", "a.x.jpg", "a.x.txt", "b.input.jpg", "b.cls", "b.other.jpg", "c.txt"]
    write_tar(tmp_path / "x.tar", dict.fromkeys(names, b"1"))
    with open(tmp_path / "x.tar", "rb") as file:
        found = Contents.read(file)
    parts = [[part[::3] for part in found.components(image, {b"a", b"b.input", b"b.other"})] for image in found.images]
    assert parts == [
        [(b"jpg", b"a.jpg"), (b"cls", b"a.cls"), (b"seg.png", b"a.seg.png"), (b"x.jpg", b"a.x.jpg"),
         (b"x.txt", b"a.x.txt")],
        [(b"jpg", b"b.input.jpg"), (b"cls", b"b.cls")],
        [(b"jpg", b"b.other.jpg"), (b"cls", b"b.cls")],
    ]  # fmt: skip
    assert found.without_image() == [(b"c", [b"txt"])]
    assert found.others == 4
