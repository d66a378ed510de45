from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from torch.nn import functional as F

from fastmoco.distributed import World
from fastmoco.knn import Probe, knn_top1, resize_for
from fastmoco.model.encoders import backbone
from fastmoco.trainer.checkpoint import found
from shards import PackOptions, pack


def votes_one_by_one(train, train_labels, val, val_labels, k, temperature):
    """The definition, sample by sample, in float64."""
    right = 0
    for feature, label in zip(val.double(), val_labels.tolist(), strict=True):
        similarity = train.double() @ feature
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        score = {}
        for i in nearest:
            name = train_labels[i].item()
            score[name] = score.get(name, 0) + (similarity[i] / temperature).exp().item()
        right += max(score, key=score.get) == label
    return 100 * right / len(val)


@pytest.mark.parametrize("k", [1, 5, 20, 1000])
def test_equals_its_definition(k):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 16, generator=generator)
    train_labels = torch.randint(7, (200,), generator=generator)
    val_labels = torch.randint(7, (90,), generator=generator)

    def near(labels):
        return F.normalize(centres[labels] + 2.5 * torch.randn(len(labels), 16, generator=generator), dim=1)

    train, val = near(train_labels), near(val_labels)
    ours = knn_top1(train, train_labels, val, val_labels, k, 0.07)
    assert 20 < ours < 100
    assert ours == pytest.approx(votes_one_by_one(train, train_labels, val, val_labels, k, 0.07))


@pytest.mark.parametrize(("crop", "short_side"), [(224, 256), (64, 72), (32, 40), (96, 112)])
def test_resize_before_the_crop(crop, short_side):
    assert resize_for(crop) == short_side


def test_the_command_gives_what_the_training_monitor_gave(shard_sets, tmp_path, command):
    run = tmp_path / "run"
    sets = ["--shards", shard_sets / "train", "--knn-val", shard_sets / "val"]
    train = ["--recipe", "demo", "--image-size", "32", "--batch-size", "32", "--queue-size", "40", "--epochs", "1"]
    command(sys.executable, "-m", "fastmoco.train", *train, *sets, "--out", run, "--knn-every", "1")
    monitor = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    probe = [sys.executable, "-m", "fastmoco.knn", "--checkpoint", found(run / "checkpoints")[0]]
    result = command(
        *probe, "--train", shard_sets / "train", "--val", shard_sets / "val", "--json", tmp_path / "knn.json"
    )
    answer = json.loads((tmp_path / "knn.json").read_text())
    assert answer["knn_top1"] == monitor["knn_top1"]
    assert (answer["resize"], answer["image_size"], answer["val"]) == (40, 32, 24)
    assert f"kNN top-1 {answer['knn_top1']:.2f} %" in result.stdout
    wrong = command(*probe, "--train", shard_sets / "train", "--val", tmp_path, check=False)
    assert wrong.returncode and "Traceback" not in wrong.stderr and str(tmp_path) in wrong.stderr


def test_images_without_a_label_take_no_part(photos, shard_sets, tmp_path):
    loose = shutil.copytree(photos / "train", tmp_path / "images")
    for place, image in enumerate(sorted((photos / "val").rglob("*.jpg"))[:5]):
        shutil.copy(image, loose / f"loose{place}.jpg")
    pack(PackOptions(src=loose, out=tmp_path / "set", workers=1), progress=False)
    probe = Probe(tmp_path / "set", shard_sets / "val", 32, 40, World(0, 1, torch.device("cpu")))
    torch.manual_seed(0)
    encoder = backbone("resnet10").eval()
    features, labels = probe.features(encoder, probe.train)
    assert len(probe.train) == 101 and features.shape == (96, 512) and labels.tolist().count(-1) == 0
    whole = Probe(shard_sets / "train", shard_sets / "val", 32, 40, World(0, 1, torch.device("cpu")))
    assert probe(encoder) == whole(encoder)
