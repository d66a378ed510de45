"""Evaluations over bad images, and probes during training that cannot be made: training goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastmoco.checkpoints import checkpoint
from fastmoco.model import encoders
from fastmoco.train import parse
from fastmoco.trainer.loop import train
from shards import ShardSet
from tests.support import weight_files, weight_table
from tests.support.runs import metrics, narrow_resnet10

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).parent / "scripts" / "trouble.py"
SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--threads", "1"]


def damage(folder, *samples):
    """Change bytes in the middle of images: they decode as before, or not at all, but are not those packed."""
    with ShardSet(folder) as shard_set:
        for sample in samples:
            shard, row = shard_set._place(sample)
            place = shard_set._indexes.rows(shard)[row]
            with (folder / f"shard-{shard:06d}.tar").open("r+b") as tar:
                tar.seek(int(place["offset"]) + int(place["size"]) // 2)
                byte = tar.read(1)
                tar.seek(-1, 1)
                tar.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def sets(shard_sets, tmp_path):
    """Copies of the sets, with 1 image of train and 2 of val damaged."""
    for name in ("train", "val"):
        shutil.copytree(shard_sets / name, tmp_path / name)
    damage(tmp_path / "train", 40)
    damage(tmp_path / "val", 3, 20)
    return tmp_path


@pytest.fixture
def probed(sets, tmp_path, in_process, monkeypatch):
    """Runs a probe of a narrow encoder."""
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", weight_table.NARROW)
    path = weight_files.write(weight_files.encoder(1), tmp_path / "encoder.pth")

    def run(probe, *arguments):
        given = ("--checkpoint", path, "--train", sets / "train", "--val", sets / "val", "--image-size", 32)
        json_file = tmp_path / "result.json"
        done = in_process(
            *("-m", f"fastmoco.{probe}", *given, "--threads", 1, "--json", json_file, *arguments), check=False
        )
        return done, json.loads(json_file.read_text()) if json_file.exists() else {}

    return run


def as_of_two_ranks(cache):
    """Make a cache of features that one process wrote one that two ranks wrote."""
    for about in cache.glob("*/about.json"):
        features = np.load(about.with_name("features-0-of-1.npy"))
        for rank in range(2):
            np.save(about.with_name(f"features-{rank}-of-2.npy"), features[rank::2])
        about.write_text(json.dumps(json.loads(about.read_text()) | {"ranks": 2}))


def test_knn_leaves_bad_images_out_and_says_so(probed, sets):
    seen = ""
    cache = ("--cache", sets / "cache")
    for turn, given in enumerate(((), cache, cache, cache)):  # in memory, into files, and from them
        if turn == 3:
            as_of_two_ranks(sets / "cache")
        done, result = probed("knn", *given)
        seen += done.stderr
        assert "(22 images, 4 classes, k 20); bad images left out: 1 of train and 2 of val" in done.stdout
        assert result["left_out"] == {"train": 1, "val": 2} and result["val"] == 24
        assert round(result["knn_top1"] * 22 / 100, 6).is_integer()
    named = f"sample 20 (shard-000000.tar, key 000000000020: {ShardSet(sets / 'val').source(20)})"
    assert ".jpg) the bytes differ from those packed" in seen and f"bad image: {named} the bytes differ" in seen
    damage(sets / "val", *(n for n in range(12) if n != 3))
    done, _ = probed("knn")
    assert done.returncode == 2 and "13 of 24 images of val are bad, as the log says of each: run" in done.stderr


@pytest.mark.parametrize("more", [(), ("--fast",)])
def test_the_linear_probe_leaves_bad_images_out(probed, sets, more):
    for _ in range(2):  # the second time the finished probe is evaluated alone
        done, result = probed("linear", "--epochs", 1, "--batch-size", 32, "--lr", 1, "--out", sets / "out", *more)
        assert "(22 images, 4 classes); bad images left out: 1 of train and 2 of val" in done.stdout
        assert result["left_out"] == {"train": 1, "val": 2}
    assert round(result["linear_top1"] * 22 / 100, 6).is_integer()


def test_fine_tuning_puts_another_image_in_place_of_a_bad_one(probed, sets):
    done, result = probed("finetune", "--epochs", 1, "--batch-size", 32, "--out", sets / "out")
    assert "(22 images, 4 classes); bad images left out: 1 of train and 2 of val" in done.stdout
    assert result["left_out"] == {"train": 1, "val": 2} and result["steps"] == 3
    assert round(result["finetune_top1"] * 22 / 100, 6).is_integer()
    assert "bad image: sample 40 (shard-" in done.stderr
    # a finished training that is evaluated again says what it was trained without
    assert probed("finetune", "--epochs", 1, "--batch-size", 32, "--out", sets / "out")[1] == result


def test_a_probe_that_cannot_be_made_is_missing_and_training_goes_on(sets, monkeypatch, caplog):
    """The validation set is damaged as a whole for a while."""
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))
    tar = sets / "val/shard-000000.tar"
    good = tar.read_bytes()

    def on_step(train_step, batch, contrast, step):
        if step in (3, 8):
            with tar.open("r+b") as file:  # in place: it is open
                file.write(bytes(len(good)) if step == 3 else good)

    given = ["--shards", sets / "train", "--out", sets / "run", "--knn-every", 1, "--knn-val", sets / "val"]
    run = train(parse([*SMALL, *map(str, given), "--steps", "12", "--log-every", "6"]), on_step)
    probes = [record for record in metrics(run) if "knn_top1" in record]
    assert [record["step"] for record in probes] == [0, 6, 12] and probes[1]["knn_top1"] is None
    assert [record["knn_images"] for record in probes] == [22, 0, 22]
    assert [record.get("knn_left_out") for record in probes] == [2, None, 2]
    warned, passed = (record for record in metrics(run) if record.get("warning") == "probe")
    said = "no kNN probe at step 6: 24 of 24 images of val are bad, as the log says of each: run `fastmoco verify"
    assert warned["message"].startswith(said) and "Training goes on, and the next probe is tried" in warned["message"]
    assert passed["passed"] and said in caplog.text


@pytest.mark.distributed
def test_ranks_recover_together_from_what_one_of_them_meets(shard_sets, tmp_path, torchrun, monkeypatch):
    """A probe that one rank cannot make, and a value of one rank that is not finite."""
    for rank in ("0", "1"):
        shutil.copytree(shard_sets / "val", tmp_path / "ranks" / rank / "val")
    (tmp_path / "ranks/1/val/shard-000000.tar").rename(tmp_path / "ranks/1/shard-000000.tar")
    run = tmp_path / "run"
    flags = [*SMALL, "--shards", shard_sets / "train", "--out", run, "--checkpoint-every", 3, "--on-nan", "rollback"]
    probes = ["--knn-every", 1, "--knn-val", "val", "--log-every", 3]
    torchrun(2, SCRIPT, *flags, *probes, "--steps", 12)
    records = metrics(run)
    assert [record["step"] for record in records if "knn_top1" in record] == [0, 6, 12]
    assert [record["knn_top1"] is None for record in records if "knn_top1" in record] == [True, False, False]
    (warned, _) = (record for record in records if record.get("warning") == "probe")
    assert warned["message"].startswith("no kNN probe at step 0: rank 1: ") and "shard-000000.tar" in warned["message"]
    (rollback,) = (record["rollback"] for record in records if "rollback" in record)
    assert [rollback[name] for name in ("found", "to", "position")] == [9, 6, 9]
    assert "query_encoder.backbone.bn1.running_var on rank 1 has values that are infinite" in rollback["cause"]
    # with another number of ranks the run continues at the same place in its data
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))
    ids = []
    train(parse([*map(str, flags), "--steps", "13"]), lambda step, batch, *_: ids.append(sorted(batch.ids.tolist())))
    undisturbed = []
    other = [*SMALL, "--shards", str(shard_sets / "train"), "--out", str(tmp_path / "other"), "--steps", "16"]
    train(parse(other), lambda step, batch, *_: undisturbed.append(sorted(batch.ids.tolist())))
    assert ids == undisturbed[15:]
    assert checkpoint.load(run / "checkpoints/step-00000013.pt")["progress"]["position"] == 16
