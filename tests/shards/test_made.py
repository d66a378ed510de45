from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmoco.demo.canvas import Canvas
from fastmoco.demo.made import CLASSES, draw_image, make_images
from fastmoco.demo.patterns import PATTERNS


def test_folders_and_files(tmp_path: Path) -> None:
    out = make_images(tmp_path / "set", classes=3, per_class=2, size=(40, 64), seed=0)
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert files == sorted(f"{name}/{i:05d}.jpg" for name in CLASSES[:3] for i in range(2))
    for path in out.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 40))


def test_an_image_depends_on_seed_class_and_index_alone(tmp_path: Path) -> None:
    many = make_images(tmp_path / "many", classes=2, per_class=3, size=32, seed=5)
    tail = make_images(tmp_path / "tail", classes=2, per_class=1, size=32, seed=5, first=2)
    other = make_images(tmp_path / "other", classes=2, per_class=3, size=32, seed=6)
    for name in CLASSES[:2]:
        assert (many / name / "00002.jpg").read_bytes() == (tail / name / "00002.jpg").read_bytes()
    bytes_seen = {p.read_bytes() for folder in (many, other) for p in folder.rglob("*.jpg")}
    assert len(bytes_seen) == 12


@pytest.mark.parametrize("pattern", PATTERNS, ids=CLASSES)
def test_patterns_are_in_range_and_have_contrast(pattern) -> None:
    y, x = np.mgrid[:64, :64].astype(np.float32) / 12 - 2.5
    mask = pattern(Canvas(x, y, 1 / 12, np.random.default_rng(0)))
    assert mask.shape == (64, 64)
    assert mask.min() >= -1e-6 and mask.max() <= 1 + 1e-6
    assert mask.std() > 0.08


def _nearest_neighbours(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, k: int = 10) -> float:
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    distance = ((features[held_out, None] - features[None, ~held_out]) ** 2).sum(-1)
    votes = labels[~held_out][np.argsort(distance, axis=1)[:, :k]]
    named = np.array([np.bincount(v).argmax() for v in votes])
    return float((named == labels[held_out]).mean())


def test_classes_do_not_differ_in_colour() -> None:
    classes, per_class = 10, 50
    images = np.stack(
        [
            np.asarray(draw_image(label, 48, 48, np.random.default_rng((0, label, i))))
            for label in range(classes)
            for i in range(per_class)
        ]
    )
    labels = np.repeat(np.arange(classes), per_class)
    held_out = np.arange(len(labels)) % 4 == 0
    mean = images.reshape(len(images), -1, 3).mean(1)
    histogram = np.stack([np.histogramdd(i.reshape(-1, 3), bins=4, range=[(0, 256)] * 3)[0].ravel() for i in images])
    # chance is 0.1; 130 images are held out, so 0.03 is one standard deviation
    assert _nearest_neighbours(mean, labels, held_out) < 0.22
    assert _nearest_neighbours(histogram, labels, held_out) < 0.3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"classes": 0}, "1 to 28 classes"),
        ({"classes": 29}, "1 to 28 classes"),
        ({"per_class": 0}, "at least 1"),
        ({"size": 8}, "at least 16"),
        ({"seed": -1}, "negative"),
    ],
)
def test_impossible_images_are_refused(tmp_path: Path, wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_images(tmp_path, **{"classes": 2, "per_class": 1, "size": 32, "seed": 0, **wrong})
    assert not list(tmp_path.iterdir())


def test_it_needs_no_torch() -> None:
    code = "import sys, fastmoco.demo.made; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
