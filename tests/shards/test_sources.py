from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.packing.options import PackOptions
from shards.packing.plan import Plan, read_problems
from shards.packing.planning import make_plan
from shards.packing.sources import FolderSource, Record, open_source
from shards.words import display
from tests.support import pictures


def touch(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def names(source) -> list[bytes]:
    return sorted(found.path for found in source.records() if isinstance(found, Record))


def problems(source) -> list[Quarantined]:
    return [found for found in source.records() if isinstance(found, Quarantined)]


def planned(src: Path) -> Plan:
    """The plan of a folder, made beside it."""
    options = PackOptions(src, src.parent / "out")
    return make_plan(options, open_source(options), src.parent / f"{src.name} plan")


def labels(src: Path) -> list[int]:
    """Labels in the order of the paths."""
    planned(src)
    rows = (src.parent / f"{src.name} plan" / "plan.bin").read_bytes().split(b"\0")[:-1]
    return [int(label) for _, label in sorted(zip(rows[3::5], rows[::5], strict=True))]


def test_flat_folder_has_no_labels(tmp_path):
    touch(tmp_path / "b.jpg")
    touch(tmp_path / "a.PNG")
    assert names(FolderSource(str(tmp_path))) == [b"a.PNG", b"b.jpg"]
    assert labels(tmp_path) == [-1, -1]
    assert planned(tmp_path).classes == ()


def test_top_folders_are_the_classes(tmp_path):
    for name in ("zebra/deep/1.jpg", "ape/2.jpg", "ape/x/3.jpg"):
        touch(tmp_path / name)
    touch(tmp_path / "notes" / "readme.txt")
    assert planned(tmp_path).classes == ("ape", "zebra")
    assert labels(tmp_path) == [0, 0, 1]


def test_a_single_folder_is_not_a_class(tmp_path):
    touch(tmp_path / "images" / "1.jpg")
    touch(tmp_path / "2.jpg")
    assert labels(tmp_path) == [-1, -1]


def test_images_beside_class_folders_have_no_label(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "1.jpg"):
        touch(tmp_path / name)
    assert labels(tmp_path) == [-1, 0, 1]


def test_links_are_followed_and_bad_ones_reported(tmp_path):
    touch(tmp_path / "src" / "a" / "1.jpg")
    touch(tmp_path / "elsewhere" / "2.jpg")
    top = tmp_path / "src"
    (top / "file.jpg").symlink_to("a/1.jpg")
    (top / "folder").symlink_to(tmp_path / "elsewhere")
    (top / "broken.jpg").symlink_to("nowhere.jpg")
    (top / "self.jpg").symlink_to("self.jpg")
    (top / "a" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to(top / "a")
    source = FolderSource(str(top))
    assert names(source) == [b"a/1.jpg", b"file.jpg", b"folder/2.jpg", b"folder/back/1.jpg"]
    assert {entry.source: entry.reason.split(":")[0] for entry in problems(source)} == {
        "broken.jpg": "broken link",
        "self.jpg": "link loop",
        "a/up": "link loop",
        "folder/back/up": "link loop",
    }


def test_any_name_is_taken(tmp_path):
    odd = [b"caf\xe9.jpg", b"new\nline.jpg", b"a b.c.d .jpg", "größe 図.JPG".encode(), b"[bold]x.jpg", b"x.jpg.jpg"]
    for name in odd:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    assert names(FolderSource(str(tmp_path))) == sorted(odd)
    assert display(b"caf\xe9.jpg") == r"caf\xe9.jpg"
    assert display(b"new\nline.jpg") == r"new\nline.jpg"
    assert display("größe 図.JPG") == "größe 図.JPG"


def test_images_without_an_image_name_are_found(tmp_path):
    touch(tmp_path / "0a1b2c", pictures.jpeg(pictures.gradient()))
    touch(tmp_path / "x.dat", pictures.encoded(pictures.gradient(), "WEBP"))
    touch(tmp_path / "x.txt", b"a text of more than sixteen bytes")
    source = FolderSource(str(tmp_path))
    assert names(source) == [b"0a1b2c", b"x.dat"]
    assert source.ignored == 1


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    touch(tmp_path / "1.jpg")
    source = FolderSource(str(tmp_path))
    assert names(source) == [b"1.jpg"]
    assert [entry.reason for entry in problems(source)] == ["not a regular file"]


def test_the_output_is_not_searched(tmp_path):
    touch(tmp_path / "1.jpg")
    touch(tmp_path / "out" / "2.jpg")
    assert names(FolderSource(str(tmp_path), skip=tmp_path / "out")) == [b"1.jpg"]


def test_nothing_to_pack_is_an_error_that_says_what_was_found(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    with pytest.raises(PackError, match="no images found"):
        planned(src)
    touch(src / "readme.md")
    (src / "1.jpg").symlink_to("nowhere")
    with pytest.raises(PackError, match=r"1 x broken link, such as 1\.jpg: broken link: leads to nowhere; 1 file of"):
        planned(src)
    with pytest.raises(PackError, match="No such file"):
        planned(tmp_path / "missing")
    with pytest.raises(
        PackError, match=r"cannot detect the kind of --src .*readme.md; name it with --source \(folder, list"
    ):
        planned(src / "readme.md")


def test_names_that_are_numbers_are_sorted_as_names_in_folders(tmp_path):
    for name in ("10/a.jpg", "9/a.jpg"):
        touch(tmp_path / "src" / name)
    assert planned(tmp_path / "src").classes == ("10", "9")
    assert labels(tmp_path / "src") == [0, 1]


def test_the_output_in_the_source_is_skipped_by_open_source(tmp_path):
    touch(tmp_path / "1.jpg")
    touch(tmp_path / "out" / "2.jpg")
    assert names(open_source(PackOptions(tmp_path, tmp_path / "out"))) == [b"1.jpg"]


def test_problems_are_kept_with_the_plan(tmp_path):
    touch(tmp_path / "src" / "1.jpg")
    (tmp_path / "src" / "2.jpg").symlink_to("nowhere")
    assert planned(tmp_path / "src").problems == 1
    found = list(read_problems(tmp_path / "src plan"))
    assert found == [Quarantined("2.jpg", "broken link: leads to nowhere")]


@pytest.mark.parametrize("changes", [{"root": "x"}, {"label_column": "x"}])
def test_options_for_tables_are_refused_for_folders(tmp_path, changes):
    with pytest.raises(PackError, match="--src is of kind folder"):
        open_source(PackOptions(tmp_path, "out", **changes))
