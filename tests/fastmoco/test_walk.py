"""What a user does in order: pack, train, kNN, linear probe, export, and the documented lines of torchvision."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from fastmoco.layouts.encoders import read_encoder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def lines_of_torchvision():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 12  # ten lines of code, and blank lines and comments
    return blocks[0]


@pytest.mark.slow
def test_from_a_folder_of_images_to_features_in_torchvision(photos, tmp_path, monkeypatch, command, in_process):
    monkeypatch.chdir(tmp_path)
    for name, out in (("train", "shards/"), ("val", "val_shards/")):
        command(Path(sys.executable).parent / "fastmoco-shard", "--src", photos / name, "--out", out)

    def step(name, *arguments):
        return in_process("-m", f"fastmoco.{name}", *arguments).stdout

    few = ("--arch", "resnet50", "--image-size", 32, "--batch-size", 8, "--queue-size", 16, "--steps", 2)
    step("train", "--shards", "shards/", "--out", "runs/r50", *few)
    trained = Path("runs/r50/checkpoints/step-00000002.pt")
    sets = ("--checkpoint", trained, "--train", "shards/", "--val", "val_shards/")
    assert re.search(r"kNN top-1 \d+\.\d\d % \(24 images, 4 classes, k 20\)", step("knn", *sets, "--json", "knn.json"))
    shown = step("linear", *sets, "--epochs", 1, "--batch-size", 32, "--fast", "--json", "linear.json")
    assert re.search(r"linear top-1 \d+\.\d\d %, top-5 100\.00 %, lr 30 \(24 images, 4 classes\)", shown)
    (probe,) = Path("runs").glob("linear-resnet50-*")  # a folder of its own, without --out
    assert {path.name for path in probe.iterdir()} >= {"config.json", "checkpoints"} and not (probe / "lock").exists()
    results = [json.loads(Path(name).read_text()) for name in ("knn.json", "linear.json")]
    assert results[0]["encoder"] == results[1]["probe"]["encoder"]  # neither probe changed the encoder
    shown = step("export", "--checkpoint", trained, "--format", "torchvision", "--out", "resnet50.pth")
    assert "torchvision's resnet50 with fc = torch.nn.Identity() loads it strictly" in shown

    shutil.copy(next((photos / "val").rglob("*.jpg")), "photo.jpg")
    names: dict = {}
    with torch.no_grad():
        exec(compile(lines_of_torchvision(), "evaluation.md", "exec"), names)
        images = torch.randn(2, 3, 64, 64)
        difference = names["model"](images) - read_encoder(trained).encoder()(images)
    assert names["features"].shape == (1, 2048) and names["features"].std() > 0
    assert difference.abs().max() <= 1e-5
