"""Names of the images in a column of their table: kept beside the URLs, and matched by a file of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.packing.preview import preview
from shards.packing.sources import Record, open_source
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set
from tests.support.web import WebServer, web_server

IMAGES = {f"{number}.jpg": jpeg(gradient(40 + number, 32, seed=number)) for number in range(6)}
KEYS = [f"{number:09d}" for number in range(6)]
COLUMNS = {"path_column": "url", "name_column": "key"}


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with web_server(IMAGES) as server:
        yield server


def urls(server: WebServer) -> list[str]:
    return [f"{server.url}/plain/{name}" for name in IMAGES]


def write(path: Path, rows: list[dict]) -> Path:
    """A table, by the extension of the path."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [",".join(rows[0]), *(",".join(str(value or "") for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    return path


def kept(out: Path) -> dict[tuple[str, str], bytes]:
    """Image by name and URL."""
    with ShardSet(out) as shard_set:
        ids = np.arange(len(shard_set))
        pairs = zip(shard_set.names(ids), shard_set.urls(ids), strict=True)
        return dict(zip(pairs, map(shard_set.read, ids.tolist()), strict=True))


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.parquet", "parts/0.csv"])
def test_a_set_keeps_the_name_and_the_url(server, tmp_path, name):
    rows = [{"url": url, "key": key, "caption": "a cat"} for url, key in zip(urls(server), KEYS, strict=True)]
    rows.append({"url": f"{server.url}/404/6.jpg", "key": "000000006", "caption": "gone"})
    src = write(tmp_path / name, rows)
    out = pack_set(src.parent if "/" in name else src, tmp_path / "set", shard_size=4, **COLUMNS)
    expected = dict(zip(zip(KEYS, urls(server), strict=True), IMAGES.values(), strict=True))
    assert kept(out) == expected
    assert json.loads((out / "quarantine.jsonl").read_text())["source"] == "000000006"


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.parquet"])
def test_names_may_be_numbers_and_a_row_without_one_is_named_by_its_path(tmp_path, name):
    rows = [{"path": "0.jpg", "id": 7}, {"path": "1.jpg", "id": None}]
    for row in rows:
        (tmp_path / row["path"]).write_bytes(IMAGES[row["path"]])
    src = write(tmp_path / name, rows)
    assert kept(pack_set(src, tmp_path / "set", name_column="id")) == {
        ("7", ""): IMAGES["0.jpg"],
        ("1.jpg", ""): IMAGES["1.jpg"],
    }
    source = open_source(PackOptions(src, "out", name_column="id"))
    assert len(list(source.records())) == 2
    assert list(source.notes()) == ["no name in 1 row; the path or URL is kept as the name"]


def test_names_do_not_change_the_order_and_one_path_with_two_names_is_one_image(tmp_path):
    for name, data in IMAGES.items():
        (tmp_path / name).write_bytes(data)
    named = [{"path": name, "key": key} for name, key in zip(IMAGES, KEYS, strict=True)]
    named += [{"path": "3.jpg", "key": "another"}]
    outs = []
    for number, rows in enumerate((named, named[::-1])):
        outs.append(pack_set(write(tmp_path / f"{number}.csv", rows), tmp_path / f"set{number}", name_column="key"))
    assert same_files(*outs)
    assert set(kept(outs[0])) == {(key, "") for key in KEYS}
    assert [json.loads(line) for line in (outs[0] / "quarantine.jsonl").read_text().splitlines()] == [
        {"source": "000000003", "reason": "duplicate: listed 2 times, packed once, as 000000003 of 000000003, another"}
    ]
    plain = pack_set(write(tmp_path / "plain.csv", [{"path": name} for name in IMAGES]), tmp_path / "plain")
    tars = [sorted(out.glob("*.tar"))[0].read_bytes() for out in (plain, outs[0])]
    assert tars[0] == tars[1]
    with pytest.raises(
        PackError, match=r"holds another set: source: same number and size .*, other names, labels or columns"
    ):
        pack(PackOptions(tmp_path / "0.csv", outs[0], workers=1), progress=False)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("t.csv", "t.csv has no column 'id'; its columns are: path, key"),
        ("t.jsonl", "no line of .*t.jsonl has a field 'id'"),
        ("t.parquet", "t.parquet has no column 'id'; its columns are: path, key"),
        ("folder", "--name-column id is for tables, but --src is of kind folder"),
    ],
)
def test_a_column_that_is_not_there_is_one_clear_error(tmp_path, name, says):
    src = tmp_path / name
    if name == "folder":
        src.mkdir()
    else:
        write(src, [{"path": "0.jpg", "key": "a"}])
    with pytest.raises(PackError, match=says):
        list(open_source(PackOptions(src, "out", name_column="id")).records())


def test_names_that_cannot_be_kept_are_named(tmp_path):
    src = write(tmp_path / "t.parquet", [{"path": "0.jpg", "score": 0.5}])
    with pytest.raises(PackError, match=r"column 'score' of .*t.parquet holds double, not strings or whole numbers"):
        list(open_source(PackOptions(src, "out", name_column="score")).records())
    (tmp_path / "t.csv").write_bytes(b"path,key\n0.jpg,a\0b\n")
    (problem,) = open_source(PackOptions(tmp_path / "t.csv", "out", name_column="key")).records()
    assert (problem.source, problem.reason) == ("t.csv:2", "bad row: the name holds a zero byte")


@pytest.fixture(params=["parquet", "arrow"])
def embedded(request, tmp_path) -> Path:
    """Images in the rows of a file, with the columns that img2dataset writes."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = pa.table({
        "key": KEYS,
        "url": [f"https://example.org/{name}" for name in IMAGES],
        "kind": ["cat"] * 6,
        "jpg": list(IMAGES.values()),
    })  # fmt: skip
    src = tmp_path / f"00000.{request.param}"
    if request.param == "parquet":
        parquet.write_table(table, src, row_group_size=4)
    else:
        feather.write_feather(table, src, compression="uncompressed")
    return src


def test_images_in_rows_have_names_and_urls_too(embedded, tmp_path):
    pairs = zip(KEYS, IMAGES, strict=True)
    expected = {
        (f"{embedded.name}/row {row} ({key})", f"https://example.org/{name}"): IMAGES[name]
        for row, (key, name) in enumerate(pairs)
    }
    assert kept(pack_set(embedded, tmp_path / "set", name_column="key", shard_size=4)) == expected
    assert {url for _, url in kept(pack_set(embedded, tmp_path / "unnamed"))} == {url for _, url in expected}
    with pytest.raises(PackError, match=r"has no column 'id' \(--name-column\); its columns are: key"):
        pack_set(embedded, tmp_path / "none", name_column="id")
    with pytest.raises(PackError, match=r"column 'jpg' of .* holds binary, not strings or whole numbers"):
        pack_set(embedded, tmp_path / "none", name_column="jpg")


@pytest.mark.parametrize("form", ["{key}", "{file}/row {row}", "row {row}", "{file}/{key}", "{file}/row {row} ({key})"])
def test_a_file_of_labels_names_the_rows_of_images(embedded, tmp_path, form):
    labels = tmp_path / "labels.csv"
    forms = [form.format(key=key, row=row, file=embedded.name) for row, key in enumerate(KEYS[:4])]
    labels.write_text("name,label\n" + "".join(f"{name},{'ab'[row % 2]}\n" for row, name in enumerate(forms)))
    source = open_source(PackOptions(embedded, "out", labels=labels, name_column="key"))
    found = [record.label for record in source.records() if isinstance(record, Record)]
    assert found == [b"a", b"b", b"a", b"b", None, None]
    notes = list(source.notes())
    assert notes == [
        f"no label in {labels} for 2 images: {embedded.name}/row 4 ({KEYS[4]}), {embedded.name}/row 5 ({KEYS[5]})"
    ]


def test_a_file_of_labels_that_names_no_row_says_how_rows_get_names(embedded, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{key}.jpg,cat\n" for key in KEYS))
    with pytest.raises(PackError) as error:
        list(open_source(PackOptions(embedded, "out", labels=labels)).records())
    assert str(error.value) == (
        f"{labels} names none of the 6 images; its names are like 000000000.jpg, the images' like {embedded.name}/row"
        " 0; --name-column takes the images' names from a column of --src"
    )
    labels.write_text("name,label\n" + "".join(f"{key},cat\n" for key in KEYS))
    plan, _ = preview(PackOptions(embedded, tmp_path / "out", labels=labels, name_column="key"))
    assert plan.classes == ("cat",)


def test_a_file_of_labels_names_what_a_table_of_urls_does(tmp_path):
    rows = [{"url": f"https://example.org/{number}/x.jpg", "key": f"in/{key}.jpg"} for number, key in enumerate(KEYS)]
    src = write(tmp_path / "t.csv", rows)
    labels = tmp_path / "labels.csv"
    for names in (KEYS, [row["key"] for row in rows], [row["url"] for row in rows]):
        labels.write_text("name,label\n" + "".join(f"{name},{row}\n" for row, name in enumerate(names)))
        source = open_source(PackOptions(src, "out", labels=labels, **COLUMNS))
        assert [record.label for record in source.records()] == [b"%d" % row for row in range(6)]


def test_the_path_beside_the_bytes_of_a_row_is_its_name_for_labels(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": data, "path": f"photos/{name}"} for name, data in IMAGES.items()]
    parquet.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    (tmp_path / "labels.csv").write_text("photos/0.jpg,cat\n1.jpg,dog\n2,cow\n")
    source = open_source(PackOptions(tmp_path / "a.parquet", "out", labels=tmp_path / "labels.csv"))
    assert [record.label for record in source.records()] == [b"cat", b"dog", b"cow", None, None, None]
