"""Mistakes of users, and sources that are not as they should be: one line with the name, the cause and a remedy."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from shards import PackError, PackOptions, pack
from shards.packing.sources import Record, open_source
from tests.support.pictures import gradient, jpeg
from tests.support.tars import tar_bytes

IMAGE = jpeg(gradient())


def encrypted() -> bytes:
    """A zip whose only member is marked as encrypted, in its header and in the directory."""
    path = Path("x.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", IMAGE)
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def error(src: str, **changes) -> str:
    with pytest.raises(PackError) as found:
        pack(PackOptions(src, "out", **{"workers": 1, **changes}), progress=False)
    return str(found.value)


FILES = {
    "rows.csv": (b"path,label\n", "no images found in --src rows.csv"),
    "open.csv": (
        b'path,label\n"a.jpg,cat\nb.jpg,dog\n',
        "no images found in --src open.csv; 1 x bad row, such as open.csv:3: bad row: 1 fields, the header has 2",
    ),
    "empty.csv": (b"", "--src empty.csv is empty"),
    "blank.csv": (b"\n\n", "--src blank.csv is empty"),
    "utf16.csv": (
        "path\na.jpg\n".encode("utf-16"),
        "cannot read --src utf16.csv: its text is encoded in UTF-16; save it in UTF-8",
    ),
    "utf16.txt": (
        b"\xfe\xff" + "a.jpg\n".encode("utf-16-be"),
        "cannot read --src utf16.txt: its text is encoded in UTF-16; save it in UTF-8",
    ),
    "utf16.jsonl": (
        '{"path": "a.jpg"}'.encode("utf-16"),
        "cannot read --src utf16.jsonl: its text is encoded in UTF-16; save it in UTF-8",
    ),
    "headless.csv": (
        b"a.jpg,cat\nb.jpg,dog\n",
        "headless.csv has no column 'path'; its columns are: a.jpg, cat (see --path-column, --label-column,"
        " --name-column); is the first line an image? it has to name the columns",
    ),
    "array.jsonl": (
        b'[{"path": "a.jpg"}]',
        "no images found in --src array.jsonl; 1 x bad row, such as array.jsonl:1: bad row: it is no object, as {...}"
        " is",
    ),
    "empty.jsonl": (b"", "--src empty.jsonl is empty"),
    "empty.txt": (b"", "no images found in --src empty.txt"),
    "page.tar": (
        b"<html>404</html>",
        "no images found in --src page.tar; 1 x damaged, such as page.tar: damaged: not a tar (truncated header)",
    ),
    "texts.tar": (tar_bytes({"a.txt": b"a"}), "no images found in --src texts.tar; 1 file of other kinds"),
    "nothing": (b"", "--src nothing is empty"),
    "one.jpg": (IMAGE, "--src one.jpg is an image; give the folder that holds it, or a list of images"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_no_image_is_named_as_it_was_given_with_the_first_cause(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, says = FILES[name]
    Path(name).write_bytes(data)
    assert error(name) == says


def test_a_zip_with_a_password_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("locked.zip").write_bytes(encrypted())
    assert error("locked.zip") == (
        "no images found in --src locked.zip; 1 x encrypted, such as locked.zip/a.jpg: encrypted: unpack the zip with"
        " its password, and pack the folder"
    )


def test_a_compressed_tar_that_is_none_is_read_as_what_its_name_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.tar.gz").write_bytes(b"<html>404</html>")
    assert error("page.tar.gz").startswith(
        "no images found in --src page.tar.gz; 1 x damaged, such as page.tar.gz: damaged: "
    )


def test_a_folder_in_which_nothing_is_found_says_what_was_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.jpg", "a/2.jpg", ".hidden/3.jpg", "readme.md"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_bytes(IMAGE if name.endswith("jpg") else b"text")
    left_out = "left out 1 hidden or system folder or file (1 .hidden); --include-hidden packs them"
    assert error("photos", exclude=("*.jpg",)) == (
        "no images found in --src photos; 1 file of other kinds, none of them an image by name or first bytes; "
        f"{left_out}; --exclude '*.jpg' left out 2 files and folders"
    )
    assert error("photos", source="zips").startswith("no images found in --src photos; 3 files of other kinds")


def test_where_no_image_could_be_packed_the_first_causes_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("gone.jpg\ntext.jpg\n")
    Path("text.jpg").write_bytes(b"text")
    said = error("list.txt")
    assert said.startswith("none of 2 images could be packed (")
    assert "gone.jpg: cannot read: No such file or directory" in said and "text.jpg: not an image: text" in said
    assert said.endswith("); out/quarantine.jsonl gives all reasons")


def test_where_all_images_have_the_same_fault_it_is_given_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a.jpg\nb.jpg\n")
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_bytes(IMAGE)
    assert error("list.txt", keep_16_bit=True).count("not 16 bits") == 1


@pytest.mark.parametrize("mark", [";", "\t", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_fields_may_be_separated_by_what_spreadsheets_write(tmp_path, mark, end):
    src = tmp_path / "t.csv"
    rows = (("path", "label", "note"), ("a.jpg", "cat", '"x, y; z"'), ("b.jpg", "dog", ""))
    text = end.join(mark.join(row) for row in rows) + end
    src.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = open_source(PackOptions(src, "out", label_column="label")).records()
    assert [(record.path, record.label) for record in found if isinstance(record, Record)] == [
        (b"a.jpg", b"cat"),
        (b"b.jpg", b"dog"),
    ]
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "labels.csv").write_text(f"a.jpg{mark}cat{end}")
    (record,) = open_source(PackOptions(tmp_path, "out", labels=tmp_path / "labels.csv")).records()
    assert isinstance(record, Record) and record.label == b"cat"


def test_leaving_out_what_cannot_be_reached_is_not_advised_where_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("http://127.0.0.1:9/a.jpg\n")
    advice = "; --unreachable leave-out packs without images that cannot be reached"
    assert error("list.txt", retries=0).endswith(advice)
    assert error("list.txt", retries=0, unreachable="leave-out").endswith("run the same command again to continue")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limit": 0}, "--limit 0 is below 1"),
        ({"seed": -1}, "--seed -1 is below 0"),
        ({"workers": -1}, "--workers -1 is outside 0..1024"),
        (
            {"executor": "ray", "ray_address": "nowhere"},
            "--ray-address nowhere is no address; give HOST:PORT, or auto on a node of the cluster",
        ),
    ],
)
def test_values_that_cannot_be_meant(tmp_path, changes, says):
    assert error(str(tmp_path), **changes) == says
