"""Labels from paths, and from tables beside a source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards import PackError, PackOptions
from shards.format.manifest import Quarantined
from shards.packing.plan import read_problems
from shards.packing.planning import make_plan
from shards.packing.preview import preview
from shards.packing.sources import Record, open_source
from tests.shards.test_archives import zip_bytes
from tests.support.labelled import read
from tests.support.pictures import gradient, jpeg
from tests.support.tars import tar_bytes, write_tar

IMAGE = jpeg(gradient())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labels") / "images"
    for name in ("a/x/1.jpg", "a/y/2.jpg", "b/x/12_3.jpg", "4.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE)
    return root


RULES = {
    "folder": ("a", "a", "b", None),
    "folder:2": ("x", "y", "x", None),
    "parent": ("x", "y", "x", None),
    "re:([0-9]+)(?:_[0-9]+)?[.]jpg$": ("1", "2", "12", "4"),
    "re:^(./.)/": ("a/x", "a/y", "b/x", None),
    "none": (None, None, None, None),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_labels_from_the_paths_of_images(folder, tmp_path, kind, rule):
    names = ("a/x/1.jpg", "a/y/2.jpg", "b/x/12_3.jpg", "4.jpg")
    expected, src = dict(zip(names, RULES[rule], strict=True)), folder
    if kind == "tar":
        src = write_tar(tmp_path / "s.tar", {f"./{name}": IMAGE for name in names})
        expected = {f"./{name}": label for name, label in expected.items()}
    elif kind == "zip":
        src = tmp_path / "s.zip"
        src.write_bytes(zip_bytes(dict.fromkeys(names, IMAGE)))
    if kind != "folder" and rule.startswith("re:^"):
        rule = "re:^s...../?(./.)/" if kind == "zip" else "re:/[.]/(./.)/"
    labels, notes = read(src, label_from=rule)
    assert labels == expected
    left = [label for label in expected.values() if label is None]
    if rule != "none" and left:
        assert notes[-1].startswith(f"--label-from {rule} gives no label to 1 image: ")
        assert notes[-1].endswith("4.jpg")


def test_labels_from_the_names_of_archives(tmp_path):
    inner = {"x/n1.tar": tar_bytes({"b/1.jpg": IMAGE}), "n2.tar": tar_bytes({"1.jpg": IMAGE})}
    write_tar(tmp_path / "tars" / "cats.tar", {"1.jpg": IMAGE, "1.cls": b"9"})
    write_tar(tmp_path / "tars" / "all.v1.TAR", inner)
    labels, _ = read(tmp_path / "tars", label_from="archive")
    assert labels == {"1.jpg": "cats", "x/n1.tar/b/1.jpg": "n1", "n2.tar/1.jpg": "n2"}
    assert read(tmp_path / "tars")[0] == {"1.jpg": "9", "x/n1.tar/b/1.jpg": "n1", "n2.tar/1.jpg": "n2"}
    assert read(tmp_path / "tars", label_from="folder")[0] == {
        "1.jpg": None,
        "x/n1.tar/b/1.jpg": "b",
        "n2.tar/1.jpg": None,
    }
    (tmp_path / "dogs.zip").write_bytes(zip_bytes({"1.jpg": IMAGE}))
    assert read(tmp_path / "dogs.zip", label_from="archive")[0] == {"1.jpg": "dogs"}


def test_one_folder_in_a_zip_is_no_class_and_says_how_to_go_on(tmp_path):
    src = tmp_path / "pets.zip"
    src.write_bytes(zip_bytes({"Pets/Cat/1.jpg": IMAGE, "Pets/Dog/1.jpg": IMAGE}))
    plan, lines = preview(PackOptions(src, tmp_path / "out"))
    assert plan.classes == ()
    assert (
        lines[3] == "note       no labels: all images are in one folder, Pets; for those in it: --label-from folder:2"
    )
    assert preview(PackOptions(src, tmp_path / "out", label_from="folder:2"))[0].classes == ("Cat", "Dog")
    assert preview(PackOptions(src, tmp_path / "out", label_from="folder"))[0].classes == ("Pets",)


def test_labels_in_any_field_of_json_members(tmp_path):
    members = {
        "a.jpg": IMAGE, "a.json": b'{"label": "no", "meta": {"kind": "cat"}}', "a.cls": b"7",
        "b.jpg": IMAGE, "b.json": b'{"meta.kind": "dog"}',
        "c.jpg": IMAGE, "c.json": b'{"meta": {"kind": 3}}',
        "d.jpg": IMAGE, "d.json": b'{"meta": [1]}',
        "e.jpg": IMAGE, "e.json": b'{"meta": {"kind": [1]}}',
    }  # fmt: skip
    src = write_tar(tmp_path / "x.tar", members)
    assert read(src, label_from="json:meta.kind")[0] == {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "3", "d.jpg": None}
    plan = make_plan(
        options := PackOptions(src, "out", label_from="json:meta.kind"), open_source(options), tmp_path / "p"
    )
    assert plan.classes == ("3", "cat", "dog")
    reason = "label: cannot read e.json: its meta.kind is neither a number nor text"
    assert list(read_problems(tmp_path / "p")) == [Quarantined("x.tar/e.jpg", reason)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label_from": "folder:0"}, "unknown --label-from 'folder:0'; known: auto, none, folder"),
        ({"label_from": "parents"}, "unknown --label-from 'parents'"),
        ({"label_from": "re:("}, "--label-from re:( is no regular expression: missing )"),
        ({"label_from": "re:(a)(b)"}, "has 2 groups; the label is one"),
        ({"label_from": "folder:9"}, "--label-from folder:9 gives no image a label; their paths are like "),
        ({"label_from": "json:x"}, "--label-from json:x is for tars, but --src is of kind folder"),
        ({"label_from": "folder", "labels": "x.csv"}, "--label-from folder and --labels x.csv both give labels"),
        ({"synsets": "x"}, "--synsets x is for --labels with ILSVRC2012's ground truth"),
        ({"labels": "nowhere.csv"}, "cannot read --labels nowhere.csv: No such file"),
        ({"labels": "nowhere.txt"}, "cannot read --labels nowhere.txt: No such file"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_meant_is_one_clear_error(folder, changes, says):
    with pytest.raises(PackError) as error:
        read(folder, **changes)
    assert says in str(error.value)


FILES = {
    "header.csv": "id,label,path\n0,cat,a/x/1.jpg\n1,dog,a/y/2.jpg\n2,cat,b/x/12_3.jpg\n3,,4.jpg\n",
    "plain.csv": "a/x/1.jpg,cat\na/y/2.jpg,dog\nb/x/12_3.jpg,cat\n",
    "names.tsv": "image\tclass\n1\tcat\n2\tdog\n12_3\tcat\n",
    "lines.jsonl": '{"file_name": "images/a/x/1.jpg", "label": "cat"}\n\n{"file_name": "./a/y/2.jpg", "label": "dog"}\n'
    '{"file_name": "12_3.jpg", "label": "cat"}\n{"file_name": "4.jpg", "label": null}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_of_names_and_labels_beside_a_source(folder, tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    labels, notes = read(folder, labels=tmp_path / name)
    assert labels == {"a/x/1.jpg": "cat", "a/y/2.jpg": "dog", "b/x/12_3.jpg": "cat", "4.jpg": None}
    assert notes == [f"no label in {tmp_path / name} for 1 image: 4.jpg"]


def test_all_labels_of_a_table_are_classes_and_what_does_not_fit_is_counted(folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("file,kind\na/x/1.jpg,10\na/y/2.jpg,3\nother/5.jpg,11\nother/6.jpg,2\n")
    plan, lines = preview(PackOptions(folder, tmp_path / "out", labels=table, path_column="file", label_column="kind"))
    assert plan.classes == tuple(map(str, range(12)))
    assert f"note       no label in {table} for 2 images: 4.jpg, b/x/12_3.jpg" in [
        line.replace("b/x/12_3.jpg, 4.jpg", "4.jpg, b/x/12_3.jpg") for line in lines
    ]
    assert f"note       2 names in {table} without an image: other/5.jpg, other/6.jpg" in lines


def test_a_table_names_members_of_archives(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("a.tar/1.jpg,cat\nb.tar/1.jpg,dog\n2.jpg,bird\n")
    for name in ("a", "b"):
        write_tar(tmp_path / "tars" / f"{name}.tar", {"1.jpg": IMAGE})
    source = open_source(PackOptions(tmp_path / "tars", "out", labels=table))
    found = {found.path: found.label for found in source.records() if isinstance(found, Record)}
    assert found == {b"a.tar": b"cat", b"b.tar": b"dog"}
    (tmp_path / "c.zip").write_bytes(zip_bytes({"deep/2.jpg": IMAGE}))
    assert read(tmp_path / "c.zip", labels=table)[0] == {"deep/2.jpg": "bird"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label\n4.jpg,cat\n4.jpg,dog\n", "gives 4.jpg two labels, cat and dog; keep one of them"),
        ("x.jpg,cat\n4.jpg\n", "labels.csv:2: bad row: 1 fields, the header has 2"),
        ("id,kind\n4.jpg,cat\n", "'name' or 'image'; its columns are: id, kind"),
        ("path,kind\n4.jpg,cat\n", "has no column 'label' or 'class' or 'category'; its columns are: path, kind"),
        ("9.jpg,cat\n", "labels.csv names none of the 4 images; its names are like 9.jpg, the images' like "),
        ("path,label\n", "labels.csv is empty"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_one_clear_error(folder, tmp_path, text, says):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(PackError) as error:
        read(folder, labels=tmp_path / "labels.csv")
    assert says in str(error.value)


def test_a_name_that_fits_two_images_is_refused(folder, tmp_path):
    (tmp_path / "labels.csv").write_text("1.jpg,cat\n")
    (tmp_path / "two").mkdir()
    (tmp_path / "two.zip").write_bytes(zip_bytes({"a/1.jpg": IMAGE, "b/1.jpg": IMAGE}))
    with pytest.raises(PackError, match=r"1\.jpg a label, but there are two\.zip/a/1\.jpg and two\.zip/b/1\.jpg; name"):
        read(tmp_path / "two.zip", labels=tmp_path / "labels.csv")


def test_json_lines_are_a_table_of_paths(folder, tmp_path):
    rows = [{"url": "a/x/1.jpg", "meta": {"kind": "cat"}}, {"url": "4.jpg"}, {"url": 4.5}, [1], {"meta": {"kind": 2}}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{bad\n")
    changes = {"path_column": "url", "label_column": "meta.kind", "root": folder}
    labels, notes = read(tmp_path / "t.jsonl", **changes)
    assert labels == {"a/x/1.jpg": "cat", "4.jpg": None}
    assert notes == ["no label in 1 row (1 null)"]
    problems = [found.source for found in open_source(PackOptions(tmp_path / "t.jsonl", "out", **changes)).records()
                if isinstance(found, Quarantined)]  # fmt: skip
    assert problems == [f"t.jsonl:{line}" for line in (3, 4, 5, 6)]
    with pytest.raises(PackError, match="has no column 'path'; its columns are: url, meta"):
        read(tmp_path / "t.jsonl")
    with pytest.raises(PackError, match=r"no line of .* has a field 'kind'"):
        read(tmp_path / "t.jsonl", path_column="url", label_column="kind")
