"""Lists and tables: what is read from each row, in any encoding, and how labels are numbered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.packing.plan import Entry, Plan, read_problems
from shards.packing.planning import make_plan
from shards.packing.sources import Record, open_source
from tests.support.commands import fastmoco_shard


def records(src: Path, **changes) -> list:
    return list(open_source(replace(PackOptions(src, src.parent / "out"), **changes)).records())


def planned(src: Path, **changes) -> tuple[Plan, list[Entry], list[tuple[str, str]]]:
    """Plan, entries sorted by path, and problems."""
    options = replace(PackOptions(src, src.parent / "out"), **changes)
    folder = src.parent / "plan"
    plan = make_plan(options, open_source(options), folder)
    fields = (folder / "plan.bin").read_bytes().split(b"\0")[:-1]
    rows = zip(*(fields[column::5] for column in range(5)), strict=True)
    entries = [Entry(path, int(label), member, int(at), int(size)) for label, size, at, path, member in rows]
    problems = [(problem.source, problem.reason) for problem in read_problems(folder)]
    return plan, sorted(entries, key=lambda entry: entry.path), sorted(problems)


def test_a_list_has_a_path_on_each_line_in_any_encoding(tmp_path):
    src = tmp_path / "list.txt"
    src.write_bytes(b"\xef\xbb\xbfa.jpg\r\n\ncaf\xe9 .jpg\ns3://bucket/b.jpg\nzero\0.jpg\n/abs/c.jpg")
    found = records(src)
    assert [record.path for record in found if isinstance(record, Record)] == [
        b"a.jpg", b"caf\xe9 .jpg", b"s3://bucket/b.jpg", b"/abs/c.jpg",
    ]  # fmt: skip
    assert [problem.source for problem in found if not isinstance(problem, Record)] == ["list.txt:5"]
    assert open_source(PackOptions(src, "out")).root == str(tmp_path)


@pytest.mark.parametrize(("name", "mark"), [("table.csv", ","), ("table.TSV", "\t")])
def test_a_table_is_read_by_its_header(tmp_path, name, mark):
    src = tmp_path / name
    rows = ["id,where,kind", '1,"a ""b"".jpg",cat', "2,b.jpg,", "", "3,c.jpg", "4,,dog", "5,caf\udce9.jpg,-1"]
    text = "\r\n".join(rows).replace(",", mark)
    src.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8", "surrogateescape"))
    found = records(src, path_column="where", label_column="kind")
    assert [tuple(record[:3]) for record in found if isinstance(record, Record)] == [
        (b'a "b".jpg', -1, b"cat"),
        (b"b.jpg", -1, None),
        (b"caf\xe9.jpg", -1, None),
    ]
    problems = [(found.source, found.reason) for found in found if not isinstance(found, Record)]
    assert problems == [(f"{name}:5", "bad row: 2 fields, the header has 3"), (f"{name}:6", "bad row: no path")]


def test_an_unclosed_field_is_reported_and_the_reading_continues(tmp_path):
    src = tmp_path / "table.csv"
    src.write_text("path\n1.jpg\n" + "x" * 200_000 + "\n2.jpg\n")
    found = records(src)
    assert [record.path for record in found if isinstance(record, Record)] == [b"1.jpg", b"2.jpg"]
    assert "field larger than field limit" in found[1].reason


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    (tmp_path / "table.csv").write_text("file,label\n1.jpg,0\n")
    with pytest.raises(PackError, match="has no column 'path'; its columns are: file, label"):
        records(tmp_path / "table.csv")
    with pytest.raises(PackError, match="has no column 'class'"):
        records(tmp_path / "table.csv", path_column="file", label_column="class")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(PackError, match=r"empty\.csv is empty"):
        records(tmp_path / "empty.csv")


def test_parquet_columns_of_several_types(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = [f"{number}.jpg" for number in range(20_000)]
    labels = pyarrow.array([None, -1, *range(2, 20_000)], pyarrow.int64())
    names = pyarrow.array([f"class {number % 3}" for number in range(20_000)]).dictionary_encode()
    table = pyarrow.table({"path": paths, "label": labels, "name": names, "score": [0.5] * 20_000})
    src = tmp_path / "table.parquet"
    parquet.write_table(table, src, row_group_size=7000)
    assert [record.path.decode() for record in records(src)] == paths
    assert [record.label for record in records(src, label_column="label")][:4] == [None, None, b"2", b"3"]
    assert [record.label for record in records(src, label_column="name")][:2] == [b"class 0", b"class 1"]
    src.rename(tmp_path / "table")
    with pytest.raises(
        PackError, match=r"row 1 of .*table, column 'score': label 0.5 is not a whole number; number the classes 0, 1"
    ):
        records(tmp_path / "table", label_column="score")
    with pytest.raises(PackError, match=r"column 'label' of .* holds int64, not strings"):
        records(tmp_path / "table", path_column="label")
    src.write_bytes(b"PAR1 damaged")
    with pytest.raises(PackError, match=r"cannot read --src .*table.parquet: "):
        records(src)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_folder_of_tables_is_one_source(tmp_path, kind):
    rows = [(f"images/{number}.jpg", number % 3) for number in range(30)]
    whole, parts = tmp_path / f"table.{kind}", tmp_path / "table"
    write_table(whole, rows)
    for number in range(3):
        write_table(parts / f"part-{number:05d}.{kind}", rows[number * 10 : number * 10 + 10])
    (parts / "_SUCCESS").write_bytes(b"")
    one, several = (list(records(src, label_column="label")) for src in (whole, parts))
    assert sorted(one) == sorted(several)
    assert len(several) == 30
    source = open_source(PackOptions(parts, tmp_path / "out"))
    assert source.root == str(parts)
    with pytest.raises(PackError, match=rf"part-0000\d\.{kind} has no column 'class'"):
        records(parts, label_column="class")
    assert open_source(PackOptions(parts, tmp_path / "out", root=tmp_path)).root == str(tmp_path)
    (parts / ("other.parquet" if kind == "csv" else "other.csv")).write_bytes(b"")
    with pytest.raises(PackError, match="holds tables of several kinds"):
        records(parts)
    nested = tmp_path / "nested" / "day=1"
    nested.mkdir(parents=True)
    write_table(nested / f"part-0.{kind}", rows[:4])
    assert len(records(tmp_path / "nested", source=kind)) == 4


def write_table(path: Path, rows: list[tuple[str, int]]) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        path.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
        return
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names, labels = zip(*rows, strict=True)
    parquet.write_table(pyarrow.table({"path": names, "label": labels}), path)


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["dog", "cat", ""], ("cat", "dog"), [1, 0, -1]),
        (["10", "9", "0"], tuple(map(str, range(11))), [10, 9, 0]),
        (["10", "09", "0"], tuple(map(str, range(11))), [10, 9, 0]),
        (["001", "003", "3"], ("0", "1", "2", "3"), [1, 3, 3]),
        (["10", "nine", "0"], ("0", "10", "nine"), [1, 2, 0]),
        (["only", "only", "only"], ("only",), [0, 0, 0]),
        (["", "-1", ""], (), [-1, -1, -1]),
        (["10.0", "2.0", "nan"], tuple(map(str, range(11))), [10, 2, -1]),
        (["1.", "+2", "-1.0"], ("0", "1", "2"), [1, 2, -1]),
        (["2.0", "two", "10"], ("10", "2.0", "two"), [1, 2, 0]),
        (["NaN", "cat", "None"], ("cat",), [-1, 0, -1]),
        (["null", "NULL", "<NA>"], (), [-1, -1, -1]),
        (["none", "NA", "-1"], ("NA", "none"), [1, 0, -1]),
        (["1.5", "a", "2"], ("1.5", "2", "a"), [0, 2, 1]),
        (["e\u0301", "z", "\u00e9"], ("z", "\u00e9"), [1, 0, 1]),
    ],
)
def test_labels_are_numbers_or_numbered_in_the_order_of_the_names(tmp_path, names, classes, labels):
    src = tmp_path / "table.csv"
    src.write_text("path,label\n" + "".join(f"{number}.jpg,{name}\n" for number, name in enumerate(names)), "utf-8")
    plan, entries, _ = planned(src, label_column="label")
    assert plan.classes == classes
    assert [entry.label for entry in entries] == labels


def test_too_large_labels_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("path,label\n1.jpg,1000000\n")
    with pytest.raises(PackError, match="label 1000000 is over 999,999"):
        planned(tmp_path / "table.csv", label_column="label")


def test_fractions_as_labels_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("path,label\n1.jpg,2\n2.jpg,0.5\n3.jpg,1e1\n")
    with pytest.raises(
        PackError, match=r"label 0.5 is not a whole number; number the classes 0, 1, 2, ..., or name them"
    ):
        planned(tmp_path / "table.csv", label_column="label")


def test_labels_of_all_types_of_columns_are_numbered_alike(tmp_path):
    """A column with gaps as pandas writes it, as floats; and as integers, text, categories and decimals."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = [10, None, 2, 9, None, -1]
    paths = [f"{number}.jpg" for number in range(6)]
    texts = [None if value is None else str(value) for value in values]
    floats = [float("nan") if value is None else float(value) for value in values]
    columns = {
        "ints": pyarrow.array(values, pyarrow.int8()),
        "doubles": pyarrow.array(floats, pyarrow.float64()),
        "floats": pyarrow.array([*floats[:4], None, -1.0], pyarrow.float32()),
        "strings": pyarrow.array([*texts[:4], "NaN", "-1"]),
        "float strings": pyarrow.array(["10.0", "nan", "2.0", "9.0", "None", ""]),
        "large strings": pyarrow.array(texts, pyarrow.large_string()),
        "categories": pyarrow.array(texts).dictionary_encode(),
        "float categories": pyarrow.array([*floats[:4], None, -1.0]).dictionary_encode(),
        "decimals": pyarrow.array(values, pyarrow.decimal128(9, 2)),
    }
    table = pyarrow.table({"path": paths, **columns})
    parquet.write_table(table, tmp_path / "table.parquet")
    rows = ["path,label", "0.jpg,10.0", "1.jpg,", "2.jpg,2.0", "3.jpg,9.0", "4.jpg,NaN", "5.jpg,-1.0"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    found = [planned(tmp_path / "table.parquet", label_column=name) for name in columns]
    found.append(planned(tmp_path / "table.csv", label_column="label"))
    for plan, entries, _ in found:
        assert plan.classes == tuple(map(str, range(11)))
        assert [entry.label for entry in entries] == [10, -1, 2, 9, -1, -1]
    parquet.write_table(pyarrow.table({"path": paths, "b": [True, False, None] * 2}), tmp_path / "b.parquet")
    plan, entries, _ = planned(tmp_path / "b.parquet", label_column="b")
    assert (plan.classes, [entry.label for entry in entries]) == (("False", "True"), [1, 0, -1] * 2)


def test_rows_without_a_label_are_counted_by_what_they_hold(tmp_path):
    src = tmp_path / "parts" / "table.csv"
    src.parent.mkdir()
    src.write_text("path,label\n1.jpg,cat\n2.jpg,nan\n3.jpg,\n4.jpg,nan\n5.jpg,None\n6.jpg,-1\n")
    for place in (src, src.parent):
        result = fastmoco_shard("--src", place, "--label-column", "label", "--out", tmp_path / "out", "--dry-run")
        assert "note       no label in 5 rows (1 -1, 1 None, 1 empty, 2 nan)" in result.stdout


def test_the_order_of_the_rows_changes_nothing(tmp_path):
    rows = [f"{number}.jpg,{'abc'[number % 3]}" for number in range(50)] + ["7.jpg,c", "7.jpg,a", "8.jpg,c"]
    plans = []
    for number, order in enumerate((rows, rows[::-1], rows[20:] + rows[:20])):
        src = tmp_path / str(number) / "table.csv"
        src.parent.mkdir()
        src.write_text("path,label\n" + "\n".join(order))
        plan, entries, problems = planned(src, label_column="label")
        plans.append((plan, problems, (src.parent / "plan" / "plan.bin").read_bytes()))
        assert [entry.label for entry in entries if entry.path == b"7.jpg"] == [0]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0][1] == [
        ("7.jpg", "duplicate: listed 3 times, packed once, with label a of a, b, c"),
        ("8.jpg", "duplicate: listed 2 times, packed once"),
    ]
    assert plans[0][0].images == 50


def test_a_label_changes_the_identity(tmp_path):
    identities = set()
    for labels in ("a,b", "b,a", "a,c"):
        first, second = labels.split(",")
        (tmp_path / "table.csv").write_text(f"path,label\n1.jpg,{first}\n2.jpg,{second}\n")
        identities.add(planned(tmp_path / "table.csv", label_column="label")[0].identity)
    assert len(identities) == 3


def test_a_table_of_a_folder_packs_to_the_same_images(folder, packed, tmp_path):
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.jpg"))
    src = tmp_path / "table.csv"
    src.write_text("path,label\n" + "".join(f"{path},{path.parts[0]}\n" for path in paths) + "missing.jpg,class 0\n")
    options = PackOptions(src, tmp_path / "out", root=folder, label_column="label", workers=2, shard_size=25)
    manifest = pack(options, progress=False)
    assert manifest.classes == ("class 0", "class 1", "class 2")
    with ShardSet(packed) as first, ShardSet(tmp_path / "out") as second:
        assert [first.read(i) for i in range(120)] == [second.read(i) for i in range(120)]
        assert first.labels(np.arange(120)).tolist() == second.labels(np.arange(120)).tolist()
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "missing.jpg", "reason": "cannot read: No such file or directory"}
    ]
    with pytest.raises(PackError, match=r"source: was 121 images of .*, now 120 images"):
        src.write_text("path,label\n" + "".join(f"{path},{path.parts[0]}\n" for path in paths))
        pack(options, progress=False)


def test_a_dry_run_describes_the_plan_and_writes_nothing(tmp_path):
    (tmp_path / "list.txt").write_text("1.jpg\n2.jpg\n2.jpg\n")
    result = fastmoco_shard("--src", tmp_path / "list.txt", "--out", tmp_path / "out", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "(list), 3 images" in result.stdout
    assert "2 images (size not known) into 1 shard" in result.stdout
    assert "1 (1 duplicate)" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt"]
