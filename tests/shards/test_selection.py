"""What is left out of a source before any image is read: hidden and system names, and --exclude."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet
from shards.packing.preview import preview
from shards.packing.sources import Record, open_source
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set

SYSTEM = [
    ".ipynb_checkpoints", ".Trash-1000", ".hidden class", "@eaDir", "__MACOSX", "$RECYCLE.BIN",
    "System Volume Information", "lost+found", "#recycle", "@Recycle", ".@__thumb",
]  # fmt: skip
IMAGE = jpeg(gradient())


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE)
    return root


def found(src: Path | str, **options) -> list[str]:
    source = open_source(PackOptions(src, "out", **options))
    return sorted(os.fsdecode(record.path) for record in source.records() if isinstance(record, Record))


@pytest.fixture
def two_classes(tmp_path) -> Path:
    return put(tmp_path / "src", "cat/1.jpg", "dog/2.jpg")


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("above", ["", "cat/"])
def test_hidden_and_system_folders_are_no_classes_and_no_images(two_classes, name, above):
    put(two_classes, f"{above}{name}/deep/3.jpg", f"{above}{name}/4.jpg")
    images = ["cat/1.jpg", "dog/2.jpg"]
    hidden = [f"{above}{name}/4.jpg", f"{above}{name}/deep/3.jpg"]
    assert found(two_classes) == images
    plan, lines = preview(PackOptions(two_classes, "out"))
    assert plan.classes == ("cat", "dog")
    note = f"note       left out 1 hidden or system folder or file (1 {name}); --include-hidden packs them"
    assert note in lines
    assert found(two_classes, include_hidden=True) == sorted(images + hidden)
    plan, lines = preview(PackOptions(two_classes, "out", include_hidden=True))
    assert plan.classes == (("cat", "dog") if above else tuple(sorted(["cat", "dog", name])))
    assert not [line for line in lines if line.startswith("note")]


def test_one_class_beside_a_hidden_folder_is_not_two(tmp_path):
    put(tmp_path / "src", "cat/1.jpg", ".ipynb_checkpoints/1-checkpoint.jpg")
    assert preview(PackOptions(tmp_path / "src", "out"))[0].classes == ()


def test_hidden_files_are_counted_if_they_are_images(two_classes, cli, tmp_path):
    put(two_classes, "cat/._1.jpg", "dog/._2.jpg", ".thumb", "cat/.cover.png")
    (two_classes / ".DS_Store").write_bytes(b"no image at all, long enough")
    (two_classes / "cat" / ".#1.jpg").symlink_to("an editor's lock")
    result = cli("--src", two_classes, "--out", tmp_path / "out")
    assert "packed 2 images into 1 shard" in result.stdout
    assert "left out 4 hidden or system folders and files (2 .*, 2 ._*); --include-hidden packs them" in result.stdout
    assert "ignored 1 file of other kinds" in result.stdout
    assert (tmp_path / "out" / "quarantine.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.png"], ["a.jpg", "cat/1.jpg", "dog/x/2.jpg", "dog/y.jpg"]),
        (["dog"], ["a.jpg", "cat/1.jpg", "cat/1.png"]),
        (["dog/x"], ["a.jpg", "cat/1.jpg", "cat/1.png", "dog/y.jpg"]),
        (["/x/"], ["a.jpg", "cat/1.jpg", "cat/1.png", "dog/x/2.jpg", "dog/y.jpg"]),
        (["x/"], ["a.jpg", "cat/1.jpg", "cat/1.png", "dog/y.jpg"]),
        (["dog/*.jpg"], ["a.jpg", "cat/1.jpg", "cat/1.png"]),  # * matches slashes
        (["./c[ab]t/?.jpg", "a.*"], ["cat/1.png", "dog/x/2.jpg", "dog/y.jpg"]),
        (["A.JPG"], ["a.jpg", "cat/1.jpg", "cat/1.png", "dog/x/2.jpg", "dog/y.jpg"]),
    ],
)
def test_patterns_are_compared_with_names_and_paths(tmp_path, patterns, left):
    src = put(tmp_path / "src", "a.jpg", "cat/1.jpg", "cat/1.png", "dog/x/2.jpg", "dog/y.jpg")
    assert found(src, exclude=patterns) == left
    for name, paths in (("list.txt", ""), ("table.csv", "path\n")):
        (src / name).write_text(paths + "".join(f"{path}\n" for path in ["a.jpg", "cat/1.jpg", "dog/x/2.jpg"]))
        assert found(src / name, exclude=patterns) == [x for x in left if x in ("a.jpg", "cat/1.jpg", "dog/x/2.jpg")]


def test_a_single_pattern_is_no_sequence_of_letters(two_classes):
    assert found(two_classes, exclude="cat/*") == found(two_classes, exclude=["cat/*"]) != found(two_classes)
    assert PackOptions("a", "b", headers="X-Token: 1").network.headers == (("X-Token", "1"),)


def test_an_excluded_set_is_another_one(two_classes, tmp_path, cli):
    put(two_classes, "cat/3.gif.jpg", "dog/old/4.jpg")
    out = tmp_path / "out"
    result = cli("--src", two_classes, "--out", out, "--exclude", "*.gif.*", "--exclude", "old", "--exclude", "none")
    assert "packed 2 images" in result.stdout
    assert "--exclude '*.gif.*' left out 1 file or folder" in result.stdout
    assert "--exclude 'old' left out 1 file or folder" in result.stdout
    assert "--exclude 'none' matches nothing" in result.stdout
    assert json.loads((out / "manifest.json").read_text())["options"]["exclude"] == ["*.gif.*", "none", "old"]
    refused = cli("--src", two_classes, "--out", out)
    assert refused.returncode == 2
    assert "--exclude was '*.gif.*' 'none' 'old', now not given" in refused.stderr
    with pytest.raises(PackError, match=r"--exclude './' is empty; give a pattern such as '\*.gif'"):
        found(two_classes, exclude=["./"])


def test_lists_name_their_files_so_hidden_ones_are_packed(tmp_path):
    put(tmp_path, ".hidden/1.jpg")
    (tmp_path / "list.txt").write_text(".hidden/1.jpg\n")
    assert found(tmp_path / "list.txt") == [".hidden/1.jpg"]


def test_hidden_files_beside_tables_and_tars_are_passed_over(packed, tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    for tar in sorted(packed.glob("*.tar"))[:1]:
        (tars / "x.tar").write_bytes(tar.read_bytes())
    put(tars, ".ipynb_checkpoints/a.jpg", "@eaDir/x.tar/y.jpg")
    (tars / "._x.tar").write_bytes(b"a resource fork")
    assert open_source(PackOptions(tars, "out")).kind == "tars"
    assert found(tars) == ["x.tar"] * 25
    source = open_source(PackOptions(tars, "out", exclude=["00000000000?.jpg"]))
    members = [record.member.decode() for record in source.records() if isinstance(record, Record)]
    assert sorted(members) == [f"{number:012d}.jpg" for number in range(10, 25)]


def test_a_bucket(two_classes, s3, tmp_path):
    from shards.storage.store import open_store

    put(two_classes, ".ipynb_checkpoints/3.jpg", "cat/@eaDir/4.jpg", "dog/._2.jpg", "old/5.jpg", "docs/x.txt")
    with open_store(s3) as store:
        store.put({str(path.relative_to(two_classes)): path for path in two_classes.rglob("*") if path.is_file()})
    options = PackOptions(s3, tmp_path / "out", exclude=["old"])
    plan, lines = preview(options)
    assert plan.classes == ("cat", "dog") and plan.images == 2
    hidden = "left out 3 hidden or system folders and files (1 ._*, 1 .ipynb_checkpoints, 1 @eaDir)"
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("note")] == [
        f"{hidden}; --include-hidden packs them",
        "--exclude 'old' left out 1 file or folder",
        "1 top-level folder holds no image and is no class: docs",
    ]


def test_classes_of_which_nothing_was_packed_are_named(two_classes, tmp_path, cli):
    put(two_classes, "eel/.hidden.jpg")
    (two_classes / "empty" / "below").mkdir(parents=True)
    (two_classes / "cat" / "1.jpg").write_bytes(IMAGE[:200])
    result = cli("--src", two_classes, "--out", tmp_path / "out")
    assert "no image was packed of 1 of 2 classes: cat" in result.stdout
    assert "2 top-level folders hold no image and are no classes: eel, empty" in result.stdout
    assert "no image of 1 class: cat" in cli("info", tmp_path / "out").stdout
    with ShardSet(tmp_path / "out") as packed:
        assert packed.classes == ("cat", "dog") and packed.labels(np.array([0])).tolist() == [1]


def test_sets_of_earlier_versions_are_continued(two_classes, tmp_path):
    """Without the new flags, options and identity are what they were."""
    assert set(PackOptions("a", "b").deciding()) == {
        "shard_size", "resize", "quality", "max_side", "max_pixels", "check", "seed", "limit",
    }  # fmt: skip
    pack_set(two_classes, tmp_path / "a")
    put(two_classes, ".ipynb_checkpoints/x.jpg")
    pack_set(two_classes, tmp_path / "b")
    assert same_files(tmp_path / "a", tmp_path / "b")


def test_unicode_forms_of_a_folders_name_are_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    src = put(tmp_path / "src", f"{composed}/1.jpg", f"{decomposed}/2.jpg", "zoo/3.jpg")
    plan, lines = preview(PackOptions(src, "out"))
    assert plan.classes == (composed, "zoo")
    assert f"note       1 class is spelt in several Unicode forms (NFC, NFD): {composed}" in lines
    with ShardSet(pack_set(src, tmp_path / "out")) as packed:
        assert sorted(packed.labels(np.arange(3)).tolist()) == [0, 0, 1]
