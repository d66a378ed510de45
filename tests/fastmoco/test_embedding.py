"""`fastmoco embed`: features in files, with ids, names and labels; continued, by several ranks, to a store."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import fastmoco
from fastmoco.embedding import Args, run
from fastmoco.features.index import open_index
from fastmoco.features.parts import EmbeddingError, about_of, write_part
from fastmoco.features.rows import Rows
from fastmoco.model import encoders
from shards import ShardSet
from shards.storage.locking import locked
from shards.storage.store import open_store
from tests.support import weight_files, weight_table
from tests.support.sets import pack_set

FLAGS = ("--image-size", 32, "--threads", 1, "--batch-size", 7, "--part-size", 20)
CLOSE = 2e-5
"""Difference of features, relative to the largest, that other batches make: convolutions sum in another order."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """File of a narrow encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders._BUILDERS, "resnet10", weight_table.NARROW)
        yield weight_files.write(weight_files.encoder(1), tmp_path_factory.mktemp("encoder") / "encoder.pth")


@pytest.fixture(scope="module")
def written(encoder, shard_sets, tmp_path_factory):
    """What the command writes, by a test's flags; not to be changed."""
    out = tmp_path_factory.mktemp("written") / "features"
    run(
        Args(
            str(encoder), str(shard_sets / "train"), out=str(out), image_size=32, threads=1, batch_size=7, part_size=20
        )
    )
    return out


@pytest.fixture
def embed(encoder, shard_sets, in_process):
    """Runs the command on the set of 96 training images."""

    def embedded(out, *flags, images=None, check=True):
        given = ("--checkpoint", encoder, "--images", images or shard_sets / "train", "--out", out, *FLAGS, *flags)
        return in_process("-m", "fastmoco.embedding", *given, check=check)

    return embedded


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= CLOSE * np.abs(expected).max()


def test_features_are_those_of_the_api_in_both_formats(embed, encoder, shard_sets, tmp_path):
    done = embed(tmp_path / "npy")
    expected = fastmoco.embed(shard_sets / "train", fastmoco.load_encoder(encoder, image_size=32))
    dim = expected.features.shape[1]
    assert f"wrote float32 features [96, {dim}] to {tmp_path / 'npy'}" in done.stdout
    embed(tmp_path / "parquet", "--format", "parquet")
    for kind in ("npy", "parquet"):
        found = fastmoco.load_embeddings(tmp_path / kind)
        assert found.features.dtype == np.float32 and found.ids.tolist() == list(range(96))
        assert_close(found.features, expected.features)
        assert found.names == expected.names and found.classes == expected.classes
        assert np.array_equal(found.labels, expected.labels)
    # as other programs read them
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(sorted(map(str, (tmp_path / "parquet").glob("*.parquet")))).to_table()
    assert table.column("class").to_pylist() == [expected.classes[label] for label in expected.labels]
    assert np.array_equal(np.stack(table.column("feature").to_numpy()), found.features)
    assert np.array_equal(
        np.load(tmp_path / "npy/part-000004.npy"), fastmoco.load_embeddings(tmp_path / "npy").features[80:]
    )
    lines = [json.loads(line) for line in (tmp_path / "npy/part-000004.jsonl").read_text().splitlines()]
    assert [(line["id"], line["name"]) for line in lines] == list(zip(range(80, 96), expected.names[80:], strict=True))


def test_urls_are_in_the_files_of_a_part_that_has_one(tmp_path):
    import pyarrow.parquet

    store, ones = open_store(tmp_path / "features"), np.ones((2, 3), np.float32)
    (tmp_path / "features").mkdir()
    for part, urls in enumerate((["", "https://h/b"], ())):
        rows = Rows(ones, np.arange(2), ["a", "b"], np.array([0, -1]), urls)
        for kind in ("npy", "parquet"):
            write_part(store, part, rows, [], kind, ["cat"])
    lines = [json.loads(line) for line in (tmp_path / "features/part-000000.jsonl").read_text().splitlines()]
    plain = [{"id": 0, "name": "a", "label": 0, "class": "cat"}, {"id": 1, "name": "b", "label": -1, "class": None}]
    assert lines == [plain[0], plain[1] | {"url": "https://h/b"}]
    tables = [pyarrow.parquet.read_table(tmp_path / f"features/part-00000{part}.parquet") for part in (0, 1)]
    assert tables[0].column("url").to_pylist() == [None, "https://h/b"] and "url" not in tables[1].column_names


def test_half_precision_is_the_nearest_number_and_refused_where_it_has_none(embed, tmp_path):
    plain = ("--checkpoint", "untrained", "--arch", "resnet10")
    embed(tmp_path / "whole", *plain)
    embed(tmp_path / "half", "--dtype", "float16", *plain)
    whole, half = (fastmoco.load_embeddings(tmp_path / name).features for name in ("whole", "half"))
    assert half.dtype == np.float16 and np.array_equal(half, whole.astype(np.float16))
    done = embed(tmp_path / "large", "--dtype", "float16", check=False)  # this encoder's reach a million
    assert done.returncode == 2 and "too large for float16; use --dtype float32 and another --out" in done.stderr


def test_what_is_done_is_kept_and_the_rest_is_made_again_alike(embed, written, tmp_path):
    out = Path(shutil.copytree(written, tmp_path / "out"))
    whole = contents(out)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("part-00000[024].*")}
    # as a kill leaves them: a part without its record, one without anything, an unfinished file
    (out / "part-000001.json").unlink()
    for path in out.glob("part-000003.*"):
        path.unlink()
    (out / "part-000003.npy.1f-01234567.partial").write_bytes(b"half")
    about = json.loads(whole["embedding.json"])
    (out / "embedding.json").write_text(json.dumps(about | {"complete": False}))
    with pytest.raises(EmbeddingError, match="are unfinished; run the same fastmoco embed command again"):
        fastmoco.load_embeddings(out)
    embed(out)
    assert contents(out) == whole
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("part-00000[024].*")} == kept


def test_images_that_cannot_be_read_have_no_row(embed, written, shard_sets, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(shard_sets / "train", copy)
    with ShardSet(copy) as shard_set:
        rows, ends = shard_set.rows(np.arange(96)), shard_set.ends
    for sample in (3, 21):
        shard = int(np.searchsorted(ends, sample, side="right"))
        with (copy / f"shard-{shard:06d}.tar").open("r+b") as tar:
            tar.seek(int(rows[sample]["offset"]) + int(rows[sample]["size"]) // 2)
            tar.write(bytes(8))
    done = embed(tmp_path / "out", images=copy)
    assert "left out 2 bad images" in done.stdout
    found = fastmoco.load_embeddings(tmp_path / "out")
    assert found.ids.tolist() == [sample for sample in range(96) if sample not in (3, 21)]
    record = json.loads((tmp_path / "out/part-000001.json").read_text())
    assert (record["rows"], record["left_out"]) == (19, [21])
    assert_close(found.features, fastmoco.load_embeddings(written).features[found.ids])


def test_too_many_bad_images_end_it_at_once_and_a_repaired_set_is_read_again(embed, written, shard_sets, tmp_path):
    copy, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(shard_sets / "train", copy)
    damaged = [1, *range(21, 31)]  # eleven, and ten are allowed; the last one is in the second of five parts
    with ShardSet(copy) as shard_set:
        rows, ends = shard_set.rows(np.arange(96)), shard_set.ends
    whole = contents(copy)
    for sample in damaged:
        shard = int(np.searchsorted(ends, sample, side="right"))
        with (copy / f"shard-{shard:06d}.tar").open("r+b") as tar:
            tar.seek(int(rows[sample]["offset"]) + int(rows[sample]["size"]) // 2)
            tar.write(bytes(8))
    for _ in range(2):  # the second start counts what the first one has left out, too
        done = embed(out, images=copy, check=False)
        assert done.returncode == 2 and "11 of 96 images of" in done.stderr and "fastmoco verify" in done.stderr
        assert [path.name for path in sorted(out.glob("part-*.json"))] == ["part-000000.json"]
    # a part that holds all of them, as of earlier versions, is no obstacle once the set is repaired
    (out / "part-000001.json").write_text(json.dumps({"rows": 10, "left_out": damaged[1:]}))
    for suffix in (".npy", ".jsonl"):
        (out / f"part-000001{suffix}").write_bytes(b"")
    for name, data in whole.items():
        (copy / name).write_bytes(data)
    embed(out, images=copy)
    found = fastmoco.load_embeddings(out)
    assert found.ids.tolist() == list(range(96))
    assert_close(found.features, fastmoco.load_embeddings(written).features)


def test_features_are_written_from_python_as_by_the_command(encoder, written, shard_sets, s3, tmp_path, monkeypatch):
    given = {"part_size": 20, "batch_size": 7, "format": "npy"}
    loaded = fastmoco.load_encoder(encoder, image_size=32)
    loaded.encoder.train()
    assert fastmoco.embed(shard_sets / "train", loaded, out=f"{s3}/from-python", index=True, **given) is None
    index, _ = open_index(f"{s3}/from-python", about_of(f"{s3}/from-python"))
    assert index is not None and index.in_words == "all of 96 images"
    assert loaded.encoder.training
    found, expected = fastmoco.load_embeddings(f"{s3}/from-python"), fastmoco.load_embeddings(written)
    assert found.names == expected.names and np.array_equal(found.labels, expected.labels)
    assert_close(found.features, expected.features)
    with pytest.raises(EmbeddingError, match=r"holds other features: .*precision was fp32, now bf16"):
        fastmoco.embed(shard_sets / "train", encoder, out=written, precision="bf16", **given)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)  # of another machine
    with pytest.raises(EmbeddingError, match=r"holds other features: .*precision was fp32, now bf16"):
        fastmoco.embed(shard_sets / "train", encoder, out=written, precision="auto", **given)
    for wrong in ({"format": "csv"}, {"dtype": "int8"}, {"part_size": 0}, {"out": encoder}):
        with pytest.raises(fastmoco.UserError, match=f"{next(iter(wrong))} .*{next(iter(wrong.values()))}"):
            fastmoco.embed(shard_sets / "train", loaded, **{"out": tmp_path / "new", **wrong})
    assert not (tmp_path / "new").exists()


def test_features_of_a_set_by_a_relative_path_are_shown_from_any_folder(
    encoder, shard_sets, in_process, tmp_path, monkeypatch
):
    monkeypatch.chdir(shard_sets)
    fastmoco.embed("train", fastmoco.load_encoder(encoder, image_size=32), out=tmp_path / "features")
    in_process("-m", "fastmoco.mapping", "--in", "features", "--out", "map.html", "--method", "pca", "--points", 20)
    assert (tmp_path / "map.html").exists()
    assert about_of(tmp_path / "features")["place"] == str(shard_sets / "train")


def test_an_output_of_other_features_or_files_is_refused(embed, written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "out")
    before = contents(tmp_path / "out")
    done = embed(tmp_path / "out", "--part-size", 30, "--resize", 40, check=False)
    assert done.returncode == 2 and "holds other features: parts was 5, now 4; part_size was 20, now 30;" in done.stderr
    assert contents(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    done = embed(tmp_path / "other", check=False)
    assert done.returncode == 2 and "holds other files (notes.txt); name an empty folder" in done.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    with locked(tmp_path / "out/lock", "process 1 on HOST"):
        done = embed(tmp_path / "out", check=False)
    assert done.returncode == 2 and "is being written by process 1 on HOST" in done.stderr
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = embed(tmp_path / "new", "--format", "parquet", check=False)
    assert done.returncode == 2 and "pip install 'fastmoco[parquet]', or --format npy" in done.stderr
    assert not list(tmp_path.glob("new/*"))


def test_an_output_without_a_part_is_taken_for_other_features(embed, written, tmp_path):
    shutil.copytree(written, tmp_path / "out")
    for path in (tmp_path / "out").glob("part-*"):
        path.unlink()
    embed(tmp_path / "out", "--part-size", 50)  # nothing is lost: no part was done
    assert len(list((tmp_path / "out").glob("part-*.json"))) == 2


def test_damaged_files_are_named_and_made_again(embed, written, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(EmbeddingError, match=r"out has no embedding\.json; fastmoco embed --out"):
        fastmoco.load_embeddings(out)
    shutil.copytree(written, out)
    whole = contents(out)
    (out / "part-000002.npy").write_bytes(whole["part-000002.npy"][:50])
    with pytest.raises(EmbeddingError, match=r"000002\.npy is damaged: .*; remove the files of that part, and run"):
        fastmoco.load_embeddings(out)
    for path in out.glob("part-000002.*"):
        path.unlink()
    with pytest.raises(EmbeddingError, match=r"part-000002\.npy is missing; run the same fastmoco embed command again"):
        fastmoco.load_embeddings(out)
    embed(out)
    assert contents(out) == whole
    about = json.loads(whole["embedding.json"])
    for wrong in ({"format": "csv"}, {"parts": "5"}, {"classes": None}, {"schema": "2"}, {"scaling": [{"low": 1}]}):
        (out / "embedding.json").write_text(json.dumps(about | wrong))
        with pytest.raises(EmbeddingError, match=r"json is damaged: .*; write the features to another place"):
            fastmoco.load_embeddings(out)
    (out / "embedding.json").write_text("[]")
    with pytest.raises(EmbeddingError, match=r"embedding\.json is damaged"):
        fastmoco.load_embeddings(out)


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_a_part_that_has_lost_bytes_is_made_again(embed, written, tmp_path, suffix):
    out = Path(shutil.copytree(written, tmp_path / "out"))
    whole, damaged = contents(out), out / f"part-000003{suffix}"
    size = damaged.stat().st_size
    damaged.write_bytes(whole[damaged.name][:-10])
    done = embed(out)
    assert f"{damaged} has {size - 10:,} of its {size:,} bytes: that part is made again" in done.stderr
    assert "4 parts of 5 are done already" in done.stderr and contents(out) == whole


def test_records_of_earlier_versions_pass_and_damaged_ones_are_named(embed, written, tmp_path):
    out = Path(shutil.copytree(written, tmp_path / "out"))
    record = out / "part-000003.json"
    earlier = json.loads(record.read_text())
    del earlier["bytes"]
    record.write_text(json.dumps(earlier))
    assert "5 parts of 5 are done already" in embed(out).stderr
    record.write_text('{"rows": 20}')
    done = embed(out, check=False)
    assert done.returncode == 2 and "000003.json is damaged: ValueError: it has no `rows` and `left_out`" in done.stderr


def test_features_of_a_set_that_has_grown_are_added(embed, photos, tmp_path):
    """Whole parts stay as they are; the files equal those of a new output."""
    images = pack_set(photos / "train", tmp_path / "set", shard_size=32)
    out, plain = tmp_path / "out", ("--checkpoint", "untrained", "--arch", "resnet10")
    embed(out, *plain, "--index", images=images)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("part-00000[0123].*")}
    pack_set(photos / "val", images, shard_size=32, append=True)
    done = embed(out, *plain, images=images)
    assert f"{images} has grown from 96 to 120 images since: features of the others are added" in done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("part-00000[0123].*")} == kept and len(kept) == 12
    embed(tmp_path / "new", *plain, images=images)
    found, whole = contents(out), contents(tmp_path / "new")
    assert {name: found[name] for name in whole if not name.endswith(".npy")} == {
        name: data for name, data in whole.items() if not name.endswith(".npy")
    }
    features = [fastmoco.load_embeddings(place).features for place in (out, tmp_path / "new")]
    assert_close(*features)
    assert len(features[0]) == 120 and open_index(out, about_of(out))[1].startswith("the index in ")
    done = embed(out, *plain, "--part-size", 30, images=images, check=False)
    assert done.returncode == 2 and "holds other features: parts was 6, now 4; part_size was 20, now 30" in done.stderr


@pytest.mark.distributed
def test_two_ranks_share_the_parts_and_write_to_a_store(in_process, shard_sets, torchrun, s3, tmp_path):
    given = ("-m", "fastmoco.embedding", "--checkpoint", "untrained", "--arch", "resnet18", "--images")
    given = (*given, shard_sets / "train", *FLAGS)
    torchrun(2, *given, "--out", f"{s3}/features")
    assert len([name for name in open_store(f"{s3}/features").names() if name.endswith(".npy")]) == 5
    found = fastmoco.load_embeddings(f"{s3}/features")
    in_process(*given, "--out", tmp_path / "alone")
    expected = fastmoco.load_embeddings(tmp_path / "alone")
    assert found.ids.tolist() == list(range(96)) and found.names == expected.names
    assert_close(found.features, expected.features)


def test_a_full_disk_is_one_line_and_nothing_half_written_stays(embed, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4500, before[1]))  # as a full disk: a part's features have more bytes
    try:
        done = embed(tmp_path / "out", check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode != 0 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["embedding.json"]
    embed(tmp_path / "out")
    assert fastmoco.load_embeddings(tmp_path / "out").ids.tolist() == list(range(96))
