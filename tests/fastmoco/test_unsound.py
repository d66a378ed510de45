"""Probes of encoders and classifiers whose accuracy would be chance."""

from __future__ import annotations

import json

import pytest
import torch

from fastmoco.model import encoders
from tests.support import weight_files, weight_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def probed(tmp_path, shard_sets, in_process, monkeypatch):
    """Runs a probe of a narrow encoder whose last BatchNorm has been changed."""
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", weight_table.NARROW)

    def run(probe, *arguments, **tensors):
        q = weight_files.encoder(1)
        for name, value in tensors.items():
            q["layer4.0." + name.replace("_", ".", 1)].fill_(value)
        path = weight_files.write(q, tmp_path / "encoder.pth")
        sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--image-size", 32, "--threads", 1)
        return in_process(
            *("-m", f"fastmoco.{probe}", "--checkpoint", path, *sets, "--json", tmp_path / "result.json", *arguments),
            check=False,
        )

    return run


@pytest.mark.parametrize(("probe", "arguments"), [("knn", ()), ("linear", ("--batch-size", 32))])
def test_features_that_overflow_are_refused(probed, tmp_path, probe, arguments):
    done = probed(probe, *arguments, bn2_weight=3e38, bn2_bias=3e38)
    assert done.returncode == 2 and not (tmp_path / "result.json").exists()
    assert "the encoder's features of some images are infinite or not a number in fp32" in done.stderr


def test_equal_features_are_named_a_collapse(probed, tmp_path):
    said = "the encoder's features of all images are equal: it has collapsed, and the result is chance"
    same = {"bn2_weight": 0, "downsample_1.weight": 0, "bn2_bias": 1}
    done = probed("knn", **same)
    assert done.returncode == 0 and done.stderr.count(said) == 2  # of both sets
    assert json.loads((tmp_path / "result.json").read_text())["knn_top1"] == 25.0  # 4 classes
    assert said not in probed("knn").stderr


def test_a_classifier_that_diverged_is_named(probed):
    done = probed("linear", "--fast", "--epochs", 2, "--batch-size", 32, "--lr", "1e6", "0.1", "--weight-decay", 10)
    assert done.returncode == 0
    assert "the classifier of --lr 1e+06 has diverged: its accuracy is chance; use a lower rate" in done.stderr
    assert "--lr 0.1 has diverged" not in done.stderr


def test_an_encoder_of_nan_is_refused_before_any_image_is_read(probed):
    done = probed("knn", bn2_weight=torch.nan)
    assert done.returncode == 2
    assert "layer4.0.bn2.weight has 128 of 128 values that are infinite or not a number" in done.stderr
