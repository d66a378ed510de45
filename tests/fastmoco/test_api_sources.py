"""Images that `import fastmoco` takes in place of a shard set: they are packed into the cache."""

from __future__ import annotations

import logging
import os
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

import fastmoco
from fastmoco.api.sources import as_set
from shards import PackError, ShardSet
from tests.support.pictures import cells, gradient

OPTIONS = {"shard_size": 32, "workers": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))


def test_a_changed_folder_or_other_options_give_another_set(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "val", folder)  # with its times
    first = as_set(folder).place
    assert first == as_set(photos / "val").place  # of equal content, wherever it is
    assert as_set(folder, {"resize": 32}).place != first
    image = next(folder.rglob("*.jpg"))
    status = image.stat()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    second = as_set(folder).place
    assert second != first and ShardSet(second).digest == ShardSet(first).digest
    image.rename(image.with_name("renamed.jpg"))
    assert as_set(folder).place not in (first, second)


def test_a_folder_of_splits_says_how_all_of_it_is_taken(photos, caplog):
    """By a command, as `fastmoco embed` and `fastmoco.embed` have no options of packing."""
    with caplog.at_level(logging.INFO):
        as_set(photos)
    command = f"fastmoco pack --src {photos} --all-splits --out SET"
    assert f"packing train alone; to take all of it: {command}, and give SET" in caplog.text


def test_options_that_change_the_labels_alone_give_another_set(photos, tmp_path):
    labels, classes = tmp_path / "labels.csv", []
    names = sorted(path.relative_to(photos / "val") for path in (photos / "val").rglob("*.jpg"))
    for turn, label in enumerate("ab"):
        labels.write_text("path,label\n" + "".join(f"{name},{label}\n" for name in names))
        os.utime(labels, ns=(0, turn))
        for packing in ({}, {"label_from": "none"}, {"labels": labels}):
            with ShardSet(as_set(photos / "val", {**OPTIONS, **packing}).place) as found:
                classes.append(found.classes)
    assert len(classes[0]) > 1 and classes[3] == classes[0]
    assert classes[1:3] == [(), ("a",)] and classes[4:] == [(), ("b",)]
    with pytest.raises(PackError, match=f"--not-in {tmp_path}/missing: "):
        as_set(photos / "val", {**OPTIONS, "not_in": tmp_path / "missing"})


@pytest.mark.parametrize("as_folder", [True, False])
def test_other_percentiles_are_those_of_another_set(as_folder, tmp_path):
    pytest.importorskip("imagecodecs")
    images, folder = [cells(seed=seed) for seed in range(3)], tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    scalings = []
    for percentiles in (None, (5, 95), None):
        packing = {"keep_16_bit": True, "workers": 1, "percentiles": percentiles}
        with ShardSet(as_set(folder if as_folder else images, packing).place) as found:
            scalings.append(found.scaling)
    assert scalings[0] == scalings[2] and scalings[0].low < scalings[1].low and scalings[1].percentiles == (5, 95)


def test_an_interrupted_packing_continues_and_of_two_at_once_one_packs(photos, tmp_path, caplog):
    def both():
        found = []
        threads = [threading.Thread(target=lambda: found.append(as_set(photos / "train", OPTIONS))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[0] == found[1] and len(found) == 2
        return found[0].place

    place = both()
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    assert len(files) == 3 * 5 + 2
    for name in ("manifest.json", "shard-000001.json", "shard-000001.tar"):
        (place / name).unlink()
    assert both() == place
    assert {path.name: path.read_bytes() for path in place.iterdir()} == files


def test_a_shard_set_is_taken_as_it_is_and_a_file_is_answered_with_what_to_do(shard_sets, tmp_path):
    assert as_set(shard_sets / "train").place == shard_sets / "train"
    assert as_set("s3://bucket/set").place == "s3://bucket/set"
    with pytest.raises(fastmoco.UserError, match=r"packing=.* is for folders of images"):
        as_set(shard_sets / "train", {"resize": 32})
    (tmp_path / "list.txt").touch()
    with pytest.raises(fastmoco.UserError, match=r"list\.txt is a file; pack it by shards\.pack"):
        as_set(tmp_path / "list.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackError, match="no image"):
        as_set(tmp_path / "empty")


def test_a_file_that_holds_images_is_packed(photos, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((photos / "val").rglob("*.jpg"))[:4]
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), tmp_path / "a.parquet")
    found = as_set(tmp_path / "a.parquet", OPTIONS)
    assert as_set(tmp_path / "a.parquet", OPTIONS).place == found.place
    with ShardSet(found.place) as opened:
        names = {opened.source(sample): opened.read(sample) for sample in range(4)}
    assert names == {f"a.parquet/row {row}": path.read_bytes() for row, path in enumerate(files)}


def test_a_data_set_is_packed_too_and_one_that_changes_is_refused():
    images = [(gradient(40, 30, seed=seed), seed % 2) for seed in range(8)]
    place = as_set(images).place
    assert as_set(list(images)).place == place != as_set(images[:7]).place
    with ShardSet(place) as found:
        assert (len(found), found.classes) == (8, ("0", "1"))

    class Random:
        reads = 0

        def __len__(self):
            return 4

        def __getitem__(self, index):
            self.reads += 1
            return np.full((16, 16), self.reads, np.uint8)

    with pytest.raises(PackError, match="gives other images each time it is read"):
        as_set(Random())
    with pytest.raises(fastmoco.UserError, match="can be read only once"):
        as_set(image for image in images)
