"""The original's loader in place of fastmoco's: data-paths of learning.py."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from fastmoco.train import parse
from fastmoco.trainer.loop import train
from pipelines import ViewSpec
from pipelines.augmentation import ViewPair
from shards.errors import UserError
from tests.support.runs import resnet10_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SPEC = ViewSpec.moco_v2(64)
COLOUR = (180, 120, 60)
MANY = 400
SMALL = (
    *("--arch", "resnet10", "--image-size", "32", "--batch-size", "16", "--queue-size", "64", "--epochs", "2"),
    *("--knn-every", "1", "--log-every", "2"),
)


@pytest.fixture
def folder(tmp_path):
    """Two classes, of one JPEG each: a flat colour, and ramps to the right in red and down in green."""
    across, down = np.meshgrid(np.linspace(20, 230, 160), np.linspace(20, 230, 120))
    ramps = np.stack([across, down, np.full_like(across, 128)], -1).astype(np.uint8)
    for name, image in (("flat", Image.new("RGB", (160, 120), COLOUR)), ("ramps", Image.fromarray(ramps))):
        (tmp_path / "images" / name).mkdir(parents=True)
        image.save(tmp_path / "images" / name / "0.jpg", quality=100, subsampling=0)
    return tmp_path / "images"


def levels(view: torch.Tensor) -> np.ndarray:
    """A normalised view in levels from 0 to 255, float32[3, S, S]."""
    return 255 * (view.numpy() * np.reshape(SPEC.std, (3, 1, 1)) + np.reshape(SPEC.mean, (3, 1, 1)))


def within(share: float, wanted: float) -> bool:
    """Whether a share of MANY draws is within five standard errors of a probability."""
    return abs(share - wanted) < 5 * (wanted * (1 - wanted) / MANY) ** 0.5


def test_colours_grey_and_blur_have_their_probabilities_and_strengths(module, folder, monkeypatch):
    radii, blurred = [], ImageFilter.GaussianBlur
    monkeypatch.setattr(ImageFilter, "GaussianBlur", lambda radius: radii.append(radius) or blurred(radius))
    torch.manual_seed(0)
    images = module("_learning.original").Images(folder, SPEC)
    views = [view for _ in range(MANY // 2) for view in images[0][:2]]
    assert all(view.shape == (3, 64, 64) and view.dtype == torch.float32 for view in views)
    pixels = np.array([levels(view)[:, 32, 32] for view in views])
    assert pixels.min() > -1e-3 and pixels.max() < 255.001
    # of a flat colour neither crop, blur nor flip leaves a trace
    unchanged = np.abs(pixels - COLOUR).max(1) < 2
    grey = pixels.max(1) - pixels.min(1) < 0.1
    assert within(unchanged.mean(), 0.2 * 0.8) and within(grey.mean(), 0.2)
    brightest = pixels[~grey].max(1)
    assert 180 * 0.6**2 < brightest.min() < 120 and brightest.max() > 230
    assert within(len(radii) / MANY, 0.5)
    assert 0.1 <= min(radii) < 0.3 and 1.8 < max(radii) <= 2 and abs(np.mean(radii) - 1.05) < 0.2


def test_crops_and_flips_have_their_sizes_and_probability(module, folder):
    torch.manual_seed(0)
    images = module("_learning.original").Images(folder, replace(SPEC, jitter=0, grey=0, blur=0))
    found = []
    for _ in range(MANY // 2):
        *views, index = images[1]
        assert index == 1 and not torch.equal(*views)
        found += [levels(view) for view in views]
    # differences of opposite edges, as shares of the whole ramps
    width = np.array([red[:, -1].mean() - red[:, 0].mean() for red, _, _ in found]) / 210
    height = np.array([green[-1].mean() - green[0].mean() for _, green, _ in found]) / 210
    assert within((width < 0).mean(), 0.5) and height.min() > 0
    area, ratio = np.abs(width) * height, np.abs(width) * 160 / (height * 120)
    # a crop's outermost pixels are averages, and its sides are rounded to whole pixels
    assert 0.17 < area.min() < 0.25 and 0.85 < area.max() < 1.02 and 0.45 < area.mean() < 0.65
    assert 0.7 < ratio.min() < 0.8 and 1.2 < ratio.max() < 1.4


def test_an_epoch_is_shuffled_whole_and_the_same_after_a_resume(module, photos):
    original = module("_learning.original")
    spec, cpu = ViewSpec.moco_v2(32), torch.device("cpu")
    made = original.OriginalPipeline(
        original.Images(photos / "train", spec), batch_size=40, workers=1, seed=7, device=cpu, dtype=torch.bfloat16
    )
    state = torch.get_rng_state()
    first, resumed, second = list(made.epoch(0)), list(made.epoch(0, 1)), list(made.epoch(1))
    assert torch.equal(torch.get_rng_state(), state)  # the model's numbers are its own
    assert made.steps_per_epoch == len(first) == len(second) == 2 and len(resumed) == 1
    for batch in first:
        assert batch.query.shape == batch.key.shape == (40, 3, 32, 32) and batch.query.dtype == torch.bfloat16
        assert batch.query.is_contiguous(memory_format=torch.channels_last) and batch.ids.dtype == torch.int64
        assert not torch.equal(batch.query, batch.key)
    orders = [torch.cat([batch.ids for batch in epoch]).tolist() for epoch in (first, second)]
    assert all(len(set(order)) == 80 and order != sorted(order) for order in orders) and orders[0] != orders[1]
    for name in ("query", "key", "ids"):
        assert torch.equal(getattr(first[1], name), getattr(resumed[0], name))


def test_other_images_and_another_augmentation_are_refused(module, folder, tmp_path):
    build = module("_learning.original").build
    config = parse(["--threads", "1"])
    run = {"global_batch": 1, "seed": 0, "device": torch.device("cpu"), "dtype": torch.float32}
    (tmp_path / "empty").mkdir()
    for images, samples, spec, said in (
        (folder, 3, SPEC, "has 2 images, and the packed set 3; give the folder that --train was packed from"),
        (folder, 2, ViewSpec.moco_v1(64), "views of MoCo v2 only"),
        (tmp_path / "empty", 2, SPEC, "empty has no images in class folders"),
    ):
        with pytest.raises(UserError, match=said):
            build(images, samples, ViewPair.of(spec), config, **run)
    learning = module("learning")
    sets = {"train": tmp_path, "val": tmp_path}
    for more, said in (
        ({}, "--images is None: the original's loader needs the images of --train as files"),
        ({"images": folder, "processes": 2}, "--processes is 2"),
    ):
        with pytest.raises(UserError, match=said):
            learning.chosen("data-paths", learning.Args(**sets, **more))


def lines(run: Path) -> list[dict]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_both_data_paths_begin_with_the_same_weights_and_make_the_same_steps(module, photos, shard_sets, tmp_path):
    (variant, other) = module("_learning.experiments").EXPERIMENTS["data-paths"].variants["small"].values()
    assert variant.flags == other.flags and (variant.loader, other.loader) == ("fastmoco", "original")
    sets = ("--shards", str(shard_sets / "train"), "--knn-val", str(shard_sets / "val"), "--threads", "1")
    flags = [*variant.flags, *sets, "--seed", "3", *SMALL, "--epochs", "1"]
    with resnet10_of(1 / 4):
        train(parse([*flags, "--out", str(tmp_path / "fastmoco")]))
        module("_learning.original").train(photos / "train", parse([*flags, "--out", str(tmp_path / "original")]))
    ours, theirs = lines(tmp_path / "fastmoco"), lines(tmp_path / "original")
    assert [(line["step"], *line) for line in ours] == [(line["step"], *line) for line in theirs]
    assert ours[-1]["step"] == 6 and ours[0]["knn_top1"] == theirs[0]["knn_top1"]
    assert ours[1]["lr"] == theirs[1]["lr"] and ours[1]["loss"] != theirs[1]["loss"]


@pytest.mark.long
def test_the_experiment_compares_both_seed_by_seed(command, photos, shard_sets, tmp_path):
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--images", photos / "train")
    where = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    call = (sys.executable, BENCHMARKS / "learning.py", "data-paths", *sets, "--seeds", "3", *where, *SMALL)
    shown = command(*call).stdout
    with (tmp_path / "results/data_paths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["epoch"]) for row in rows] == [
        (variant, epoch) for variant in ("fastmoco", "original") for epoch in ("0.0", "1.0", "2.0")
    ]
    assert rows[0]["knn_top1"] == rows[3]["knn_top1"] and rows[0]["spread"] == ""
    assert all(row["precision"] == "fp32" and row["commit"] and row["cpu"] and row["date"] for row in rows)
    logged = lines(tmp_path / "runs/data-paths/original-seed3")
    spreads = [line["spread"] for line in logged if "spread" in line and line["step"] <= 6]
    assert float(rows[4]["spread"]) == pytest.approx(min(spreads), abs=5e-5)
    apart = float(rows[2]["knn_top1"]) - float(rows[5]["knn_top1"])
    assert f"fastmoco minus original at the end, seed by seed: {apart:+.1f}." in shown
    assert "kNN top-1, %" in (tmp_path / "results/data_paths.svg").read_text()
