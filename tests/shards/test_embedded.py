"""Images in the rows of Parquet and Arrow files: pyarrow's and those of `datasets`, local and in S3."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.packing import stage_part, staging
from shards.packing.preview import preview
from shards.packing.sources import open_source
from shards.packing.stage_part import StagePart
from shards.packing.task import Done, perform
from shards.storage.store import open_store
from tests.support.folders import same_files
from tests.support.pictures import encoded, gradient, jpeg
from tests.support.sets import pack_set

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ["zebra", "ant", "ox"]  # not in alphabetical order: the numbers of a ClassLabel are kept
COUNT = 50


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [jpeg(gradient(40 + number, 32, seed=number)) for number in range(COUNT)]


@pytest.fixture(scope="module")
def structs(images) -> list[dict]:
    return [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(images)]


@pytest.fixture(scope="module")
def dataset(structs, tmp_path_factory):
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    labels = [number % 3 if number else -1 for number in range(COUNT)]
    return datasets.Dataset.from_dict({"image": structs, "label": labels}, features=features)


@pytest.fixture(scope="module")
def compressed(dataset, tmp_path_factory) -> Path:
    """Two Parquet files, compressed, in row groups of ten."""
    folder = tmp_path_factory.mktemp("compressed")
    table = dataset.with_format("arrow")[:]
    for part in range(2):
        name = folder / f"train-{part:05d}-of-00002.parquet"
        pq.write_table(table.slice(part * 25, 25), name, row_group_size=10, compression="zstd")
    return folder


@pytest.fixture(scope="module")
def packed(compressed, tmp_path_factory) -> Path:
    return pack_set(compressed, tmp_path_factory.mktemp("packed") / "set", shard_size=15)


def found(out: Path | str) -> dict[str, tuple[bytes, int]]:
    """Image and label by name."""
    with ShardSet(out) as opened:
        ids = np.arange(len(opened))
        labels = opened.labels(ids)
        return {opened.source(int(i)): (opened.read(int(i)), int(labels[i])) for i in ids}


def quarantined(out: Path) -> dict[str, str]:
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    return {line["source"]: line["reason"] for line in map(json.loads, lines)}


def classes(out: Path) -> list[str]:
    return json.loads((out / "manifest.json").read_text())["classes"]


def expected(images: list[bytes], file_of=lambda row: ("a.parquet", row), label=lambda row: row % 3 if row else -1):
    return {"{}/row {} ({}.jpg)".format(*file_of(row), row): (data, label(row)) for row, data in enumerate(images)}


def of_two(row: int) -> tuple[str, int]:
    return f"train-{row // 25:05d}-of-00002.parquet", row % 25


def test_compressed_parquet_keeps_every_image_its_name_and_the_number_of_its_class(images, packed):
    assert found(packed) == expected(images, of_two)
    assert classes(packed) == CLASSES
    assert (packed / "packing.partial").exists() is False


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.long)])
def test_any_number_of_workers_writes_the_same_bytes(compressed, packed, tmp_path, workers):
    assert same_files(packed, pack_set(compressed, tmp_path / "set", shard_size=15, workers=workers))


@pytest.mark.long
def test_ray_writes_the_same_bytes(compressed, packed, tmp_path):
    out = pack_set(compressed, tmp_path / "set", shard_size=15, workers=2, executor="ray")
    assert same_files(packed, out)


def test_parquet_as_datasets_writes_it_is_read_in_place(dataset, images, tmp_path, monkeypatch):
    dataset.to_parquet(tmp_path / "a.parquet")
    copies: list[int] = []
    kept = stage_part._Reading.run

    def run(self, *arguments):
        yield from kept(self, *arguments)
        copies.append(self._copied)

    monkeypatch.setattr(stage_part._Reading, "run", run)
    out = pack_set(tmp_path / "a.parquet", tmp_path / "set")
    assert found(out) == expected(images)
    assert copies == [0]


def test_a_data_set_saved_to_disk_is_its_files_without_caches(dataset, images, tmp_path):
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "cache-0.arrow").write_bytes((tmp_path / "saved/data-00000-of-00002.arrow").read_bytes())
    out = pack_set(tmp_path / "saved", tmp_path / "set")
    assert found(out) == expected(images, lambda row: (f"data-{row // 25:05d}-of-00002.arrow", row % 25))
    assert classes(out) == CLASSES
    (tmp_path / "saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(PackError, match=r"state.json names data-00001-of-00002.arrow, which is missing"):
        pack_set(tmp_path / "saved", tmp_path / "other")


@pytest.mark.parametrize("compression", ["uncompressed", "lz4"])
def test_feather_files(structs, images, tmp_path, compression):
    table = pa.table({"image": structs, "label": list(range(COUNT))})
    feather.write_feather(table, tmp_path / "a.feather", compression=compression)
    out = pack_set(tmp_path / "a.feather", tmp_path / "set", label_column="label")
    assert found(out) == expected(images, lambda row: ("a.feather", row), label=lambda row: row)


def test_of_several_splits_train_is_packed(compressed, images, tmp_path, capsys):
    for path in compressed.iterdir():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    source = (compressed / "train-00000-of-00002.parquet").read_bytes()
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(source)
    pack(PackOptions(tmp_path / "data", tmp_path / "set", workers=1))
    assert found(tmp_path / "set") == expected(images, of_two)
    note = "packed the split train alone, without 1 file of test; --all-splits packs all of them"
    assert note in capsys.readouterr().out
    assert len(found(pack_set(tmp_path / "data", tmp_path / "all", all_splits=True))) == 75
    (tmp_path / "hub").mkdir()  # as it is cloned, with a README beside the folder `data`
    (tmp_path / "hub" / "README.md").touch()
    (tmp_path / "data").rename(tmp_path / "hub" / "data")
    cloned = found(pack_set(tmp_path / "hub", tmp_path / "cloned"))
    assert cloned == {f"data/{name}": image for name, image in expected(images, of_two).items()}
    (tmp_path / "hub" / "data").rename(tmp_path / "data")
    only = pack_set(tmp_path / "data", tmp_path / "test", exclude=("train-*",))
    assert len(found(only)) == 25


def test_a_plain_column_of_bytes_and_one_of_text_as_label(images, tmp_path):
    kinds = [CLASSES[number % 3] for number in range(COUNT)]
    pq.write_table(pa.table({"photo": images, "kind": kinds}), tmp_path / "a.parquet", row_group_size=7)
    out = pack_set(tmp_path / "a.parquet", tmp_path / "set", label_column="kind")
    names = sorted(CLASSES)
    assert found(out) == {f"a.parquet/row {row}": (data, names.index(kinds[row])) for row, data in enumerate(images)}
    assert classes(out) == names


def test_columns_that_are_missing_or_several_are_named(images, structs, tmp_path):
    src = tmp_path / "a.parquet"
    pq.write_table(pa.table({"left": structs[:2], "right": structs[:2], "n": [1, 2]}), src)
    out = tmp_path / "set"
    with pytest.raises(
        PackError, match="several columns that can be images: left, right; choose one by --image-column"
    ):
        pack_set(src, out)
    with pytest.raises(PackError, match=r"no column 'middle'; its columns are: left \(struct<.*>\), .* n \(int64\)"):
        pack_set(src, out, image_column="middle")
    with pytest.raises(PackError, match=r"--image-column n of .*a.parquet holds int64; it has to hold bytes"):
        pack_set(src, out, image_column="n")
    with pytest.raises(PackError, match=r"--root \. is for lists and tables of paths, but --src .* holds the images"):
        pack_set(src, out, image_column="left", root=".")
    with pytest.raises(PackError, match="no column 'class' "):
        pack_set(src, out, image_column="left", label_column="class")
    with pytest.raises(PackError, match="--image-column left is for Parquet and Arrow files"):
        pack_set(tmp_path, tmp_path.parent / "none", source="folder", image_column="left")
    assert found(pack_set(src, out, image_column="right", label_column="n")) == {
        f"a.parquet/row {row} ({row}.jpg)": (images[row], row + 1) for row in range(2)
    }


def test_another_column_of_images_is_another_source(images, tmp_path):
    src, out = tmp_path / "a.parquet", tmp_path / "set"
    pq.write_table(pa.table({"left": images[:2], "right": images[2:4]}), src)
    left = {f"a.parquet/row {row}": (images[row], -1) for row in range(2)}
    assert found(pack_set(src, out, image_column="left")) == left
    with pytest.raises(PackError, match=r"holds another set: source: .* other names, labels or columns"):
        pack_set(src, out, image_column="right")
    assert found(pack_set(src, out, image_column="left")) == left
    pack_set(src, out, image_column="right", append=True)
    with ShardSet(out) as both:
        assert {both.read(sample) for sample in range(len(both))} == set(images[:4])


def test_rows_without_an_image_are_left_out_with_their_row(images, tmp_path):
    broken = images[3][:-300]
    values = [images[0], None, b"", broken, encoded(gradient(20, 20), "PNG"), b"no image, but text"]
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet")
    out = pack_set(tmp_path / "a.parquet", tmp_path / "set")
    assert sorted(found(out)) == ["a.parquet/row 0", "a.parquet/row 4"]
    reasons = quarantined(out)
    assert reasons.pop("a.parquet/row 1") == "no image: the row holds null"
    assert reasons.pop("a.parquet/row 2") == "no image: the row holds no bytes"
    assert sorted(reasons) == ["a.parquet/row 3", "a.parquet/row 5"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    pack_set(tmp_path / "a.parquet", out)  # nothing is left to do, and nothing changes
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_damage_costs_its_group_of_rows_and_a_cut_off_file_is_refused(compressed, tmp_path):
    whole = (compressed / "train-00000-of-00002.parquet").read_bytes()
    footer = pq.read_metadata(io.BytesIO(whole))
    chunk = footer.row_group(1).column(0)
    at = chunk.dictionary_page_offset + 100
    src = tmp_path / "a.parquet"
    src.write_bytes(
        whole[:at] + bytes(chunk.total_compressed_size - 200) + whole[at + chunk.total_compressed_size - 200 :]
    )
    out = pack_set(src, tmp_path / "set")
    assert len(found(out)) == 15
    assert {name.partition(" (")[0] for name in quarantined(out)} == {f"a.parquet/row {row}" for row in range(10, 20)}
    assert all(reason.startswith("damaged: ") for reason in quarantined(out).values())
    src.write_bytes(whole[:-1000])
    with pytest.raises(PackError, match=r"cannot read --src .*a.parquet: the file is damaged \("):
        pack_set(src, tmp_path / "other")


def test_an_arrow_file_that_is_cut_off_gives_the_rows_before_the_damage(images, tmp_path, capsys):
    table = pa.table({"image": images})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data[: len(data) // 2])
    pack(PackOptions(tmp_path / "a.arrow", tmp_path / "set", workers=1))
    assert len(found(tmp_path / "set")) == 20
    assert quarantined(tmp_path / "set")["a.arrow"].startswith("truncated: ")
    assert "1 file damaged; rows behind it are missing: a.arrow after row 19" in capsys.readouterr().out


def test_a_limit_reads_only_the_rows_that_are_packed(compressed, packed, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.packing.sources.embedded._PART", 1)  # a part for each group of rows
    tasks: list[StagePart] = []
    kept = StagePart.steps

    def steps(self, *arguments):
        tasks.append(self)
        return kept(self, *arguments)

    monkeypatch.setattr(StagePart, "steps", steps)
    out = pack_set(compressed, tmp_path / "set", limit=3)
    assert len(tasks) <= 3 and sum(len(task.wanted or ()) for task in tasks) == 3
    assert found(out).items() <= found(packed).items() and len(found(out)) == 3


def test_a_killed_packing_continues_with_the_parts_it_has_read(compressed, packed, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.packing.sources.embedded._PART", 1)
    out = tmp_path / "set"

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_resolve", killed)
        with pytest.raises(KeyboardInterrupt):
            pack_set(compressed, out, shard_size=15)
    (folder,) = (out / "packing.partial").glob("staged-*")
    kept = {path: path.stat().st_ino for path in folder.glob("*.places")}
    assert len(kept) == 6
    lost = sorted(kept)[2]
    lost.unlink()  # as if the kill had come before this part was complete
    (folder / "000002.images.1-1.partial").write_bytes(b"half")
    done: list[int] = []
    events = staging.run_tasks

    def run(tasks, *arguments):
        if isinstance(tasks[0], StagePart):
            done.extend(task.number for task in tasks)
        events(tasks, *arguments)

    monkeypatch.setattr(staging, "run_tasks", run)
    pack_set(compressed, out, shard_size=15)
    assert done == [2]
    assert same_files(packed, out)


def test_the_disk_must_have_room_for_the_copies(compressed, tmp_path, monkeypatch):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: _Usage())
    with pytest.raises(PackError, match=r"needs room for copies of the images, .* 1.0 kB are free; name an --out on"):
        pack_set(compressed, tmp_path / "set")


class _Usage:
    free = 1000


def test_a_dry_run_reads_no_image_and_says_how_they_are_read(compressed, dataset, tmp_path):
    plan, lines = preview(PackOptions(compressed, tmp_path / "set"))
    text = "\n".join(lines)
    assert plan.images == COUNT and plan.classes == tuple(CLASSES)
    assert "(parquet), 50 images" in text and "no label in 1 row (1 -1)" in text
    assert "2 files, compressed: the output needs" in text
    dataset.to_parquet(tmp_path / "a.parquet")
    assert "1 file, not compressed: images are read in place" in "\n".join(
        preview(PackOptions(tmp_path / "a.parquet", tmp_path / "set"))[1]
    )


def test_from_s3_to_s3(compressed, packed, s3, tmp_path):
    store = open_store(f"{s3}/source")
    for path in compressed.iterdir():
        store.write(path.name, path.read_bytes())
    pack_set(f"{s3}/source", f"{s3}/set", shard_size=15)  # type: ignore[arg-type]
    out = open_store(f"{s3}/set")
    assert {name: out.read(name) for name in out.names()} == {path.name: path.read_bytes() for path in packed.iterdir()}


def test_a_table_of_paths_is_one_still(images, tmp_path):
    (tmp_path / "0.jpg").write_bytes(images[0])
    pq.write_table(pa.table({"path": ["0.jpg"], "hash": [b"123"]}), tmp_path / "a.parquet")
    assert found(pack_set(tmp_path / "a.parquet", tmp_path / "set")) == {"0.jpg": (images[0], -1)}


def test_a_part_can_be_done_by_itself(compressed, tmp_path):
    """What a worker does: the event at the end, and the two files."""
    source = open_source(PackOptions(compressed, tmp_path))
    assert len(list(source.records())) == COUNT
    (tmp_path / "staged-x").mkdir()
    task = StagePart(str(compressed), str(tmp_path), 1, "parquet", source.parts[1], "image.bytes", "staged-x")  # type: ignore[attr-defined]
    assert list(perform(task))[-1] == Done(1)
    assert sorted(path.name for path in (tmp_path / "staged-x").iterdir()) == ["000001.images", "000001.places"]


def items_of(out: Path) -> dict[str, tuple[bytes, int]]:
    return {name.partition("(")[2].strip(")"): image for name, image in found(out).items()}


def test_a_data_set_of_datasets_gives_the_files_it_holds(dataset, images, tmp_path):
    import datasets

    expected = {f"{row}.jpg": (data, row % 3 if row else -1) for row, data in enumerate(images)}
    pack(dataset, tmp_path / "indexed", progress=False, workers=1)
    assert items_of(tmp_path / "indexed") == expected and classes(tmp_path / "indexed") == CLASSES
    pack(dataset.to_iterable_dataset(), tmp_path / "streamed", progress=False, workers=1)
    assert items_of(tmp_path / "streamed") == expected and classes(tmp_path / "streamed") == CLASSES
    with pytest.raises(PackError, match=r"a DatasetDict has the splits train, test; give one, as in data\['train'\]"):
        pack(datasets.DatasetDict({"train": dataset, "test": dataset}), tmp_path / "none", progress=False)
    renamed = dataset.rename_columns({"image": "left", "label": "kind"}).add_column("again", list(range(COUNT)))
    with pytest.raises(PackError, match=r"no column 'right' \(image_column\); its columns are: left, kind, again"):
        pack(renamed, tmp_path / "none", progress=False, image_column="right")
    pack(renamed, tmp_path / "numbers", progress=False, workers=1, label_column="again")
    assert items_of(tmp_path / "numbers")["7.jpg"] == (images[7], 7)
    with pytest.raises(PackError, match="image_column and label_column are for data sets of Hugging Face"):
        pack(images, tmp_path / "none", progress=False, label_column="label")


def test_rows_of_a_data_set_without_an_image_are_left_out(images, tmp_path):
    import datasets

    rows = [{"bytes": images[0], "path": None}, None, {"bytes": images[1][:100], "path": "b.jpg"}]
    data = datasets.Dataset.from_dict({"photo": rows}, features=datasets.Features({"photo": datasets.Image()}))
    pack(data, tmp_path / "set", progress=False, workers=1)
    assert list(found(tmp_path / "set").values()) == [(images[0], -1)]
    assert quarantined(tmp_path / "set")["item 1"] == "no image: the row holds null"
    assert set(quarantined(tmp_path / "set")) == {"item 1", "item 2 (b.jpg)"}


@pytest.mark.long
def test_killed_at_random_moments_the_set_is_the_same(compressed, packed, tmp_path):
    line = [sys.executable, "-m", "shards.cli", "--src", compressed, "--out", tmp_path / "set", "--shard-size", "15"]
    moments = random.Random(0)
    for turn in range(8):
        process = subprocess.Popen([*map(str, line), "--workers", "2"], start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.3, 3.0))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if turn % 3 == 2 and (tmp_path / "set" / "manifest.json").exists():
            shutil.rmtree(tmp_path / "set")
    pack_set(compressed, tmp_path / "set", shard_size=15)
    assert same_files(packed, tmp_path / "set")
