"""Validation sets that lack classes of the training set, name them in another Unicode form, or have others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.probes.accuracy import hits
from fastmoco.probes.classifiers import Classifiers
from fastmoco.probes.encoders import open_encoder
from fastmoco.probes.knn import Probe, knn_top1
from fastmoco.probes.linear import LinearProbe
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.probes.sets import LabelledSets, ProbeError
from fastmoco.ranks.world import World
from tests.support.sets import pack_set

CPU = World(0, 1, torch.device("cpu"))
NAMES = ["ape", "caf\u00e9", "dog", "yak"]
KEPT = [1, 3]  # the classes of the smaller validation sets: café and yak
pytestmark = pytest.mark.usefixtures("one_thread")


def folder(photos: Path, where: Path, names: dict[int, str]) -> Path:
    for number, source in enumerate(sorted(photos.iterdir())):
        if number in names:
            shutil.copytree(source, where / names[number])
    return where


def table(photos: Path, place: Path, labels: dict[int, str]) -> Path:
    lines = ["path,label"]
    for number, source in enumerate(sorted(photos.iterdir())):
        lines += [f"{image},{labels[number]}" for image in sorted(source.iterdir()) if number in labels]
    place.write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def sets(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` of four named classes, `numbers` of the same as 0 to 3; `val` and others have classes 1 and 3 alone."""
    at = tmp_path_factory.mktemp("classes")
    train, val = photos / "train", photos / "val"
    kept = {number: NAMES[number] for number in KEPT}
    pack_set(folder(train, at / "a", dict(enumerate(NAMES))), at / "train")
    pack_set(folder(val, at / "b", kept), at / "val")
    pack_set(folder(val, at / "c", kept | {1: "cafe\u0301"}), at / "decomposed")
    pack_set(folder(val, at / "d", kept | {0: "eel"}), at / "unknown")
    pack_set(folder(train, at / "e", kept), at / "train of two")
    numbers = {number: str(number) for number in range(4)}
    pack_set(table(train, at / "numbers.csv", numbers), at / "numbers", label_column="label")
    for name, labels in (
        ("val numbers", {1: "1", 3: "3"}),
        ("low numbers", {0: "000", 1: "001"}),
        ("others", {0: "7"}),
    ):
        pack_set(table(val, at / f"{name}.csv", labels), at / name, label_column="label")
    return at


@pytest.mark.parametrize(
    ("train", "val", "labels"),
    [
        ("train", "val", [1, 3]),
        ("train", "decomposed", [1, 3]),
        ("numbers", "val numbers", [1, 3]),
        ("numbers", "low numbers", [0, 1]),
    ],
)
def test_classes_are_found_by_their_names(sets, train, val, labels):
    found = LabelledSets(sets / train, sets / val)
    assert found.classes == 4 and found.val_classes == 2
    assert found.among is not None and found.among.tolist() == labels
    # six images of each class; the names and pictures of the two sets are those of one photo folder
    assert np.bincount(found.val_labels, minlength=4).tolist() == [6 if i in labels else 0 for i in range(4)]
    names = NAMES if train == "train" else list("0123")
    assert found.summary()["evaluated"] == [names[label] for label in labels]
    (note,) = found.notes()
    assert note.startswith(f"the validation set has 2 of 4 classes ({', '.join(names[i] for i in labels)})")


def test_a_set_with_all_classes_is_not_a_part(sets):
    found = LabelledSets(sets / "train", sets / "train")
    assert found.among is None and found.summary()["evaluated"] is None
    (note,) = found.notes()
    assert note.startswith("the validation images are the training images: the result says nothing about other images")


@pytest.mark.parametrize(
    ("train", "val", "names"),
    [("train", "unknown", "eel"), ("numbers", "others", "7"), ("train", "val numbers", "1, 3")],
)
def test_unknown_classes_are_refused_by_name(sets, train, val, names):
    what = "1 class" if "," not in names else "2 classes"
    with pytest.raises(
        ProbeError, match=rf"does not have {what} of the validation set .*: {names}; pack a .*--exclude"
    ):
        LabelledSets(sets / train, sets / val)


def test_classes_without_a_training_image_are_named(sets):
    found = LabelledSets(sets / "val numbers", sets / "numbers")  # of 0 to 3, the training set has images of 1 and 3
    (note,) = found.notes()
    assert note == "no training image has a class of these validation images, which count as wrong: 0, 2"
    assert found.among is None and found.classes == 4


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train", "decomposed"), ("numbers", "val numbers")])
def test_knn_searches_the_training_images_of_these_classes(sets, train, val):
    """As with a training set of these two classes, and with features and names put together by hand."""
    encoder = open_encoder("untrained", "resnet10").encoder
    probe = Probe(sets / train, sets / val, 32, 40, CPU)
    banks = probe.banks(encoder)
    (top1,) = probe.table(banks, [(5, 0.07)])
    (of_all,) = probe.table(banks, [(5, 0.07)], all_classes=True)
    assert top1 == Probe(sets / "train of two", sets / "val", 32, 40, CPU)(encoder, 5, 0.07)
    features = [torch.nn.functional.normalize(bank.rows(np.arange(len(bank))), dim=1) for bank in banks]
    true = torch.tensor([KEPT[label] for label in _pairs(probe)])
    train_labels = torch.from_numpy(probe.sets.train.labels(probe.sets.train_ids)).long()
    assert of_all == pytest.approx(knn_top1(features[0], train_labels, features[1], true, 5, 0.07))
    assert of_all < top1 < 100


def _pairs(probe: Probe) -> list[int]:
    """0 or 1 for each validation image: its class among the two, read from its own set's names."""
    labels = probe.sets.val.labels(probe.sets.val_ids).tolist()
    return [{"1": 0, "3": 1, "yak": 1}.get(probe.sets.val.classes[label], 0) for label in labels]


def test_the_linear_probe_guesses_among_these_classes_and_among_all(sets, tmp_path):
    settings = LinearSettings(
        "untrained", train=sets / "train", val=sets / "val", out=tmp_path / "run", epochs=2, batch_size=24,
        image_size=32, arch="resnet10", threads=1, lr=(3.0,), fast=True,
    )  # fmt: skip
    made = LinearProbe(settings, open_encoder("untrained", "resnet10"), CPU)
    result = made.run()
    bank = made.extractor.bank(made.sets.val, made.sets.val_ids)
    true = [NAMES.index(made.sets.val.classes[label]) for label in bank.labels_N.tolist()]
    scores = made.classifiers.heads[0](bank.rows(np.arange(len(bank)))).detach().numpy()
    right = [KEPT[int(row[KEPT].argmax())] == label for row, label in zip(scores, true, strict=True)]
    right_of_all = [int(row.argmax()) == label for row, label in zip(scores, true, strict=True)]
    assert result["linear_top1"] == pytest.approx(100 * np.mean(right))
    assert result["linear_top1_all_classes"] == pytest.approx(100 * np.mean(right_of_all))
    assert result["linear_top1_all_classes"] < result["linear_top1"] and result["linear_top5"] == 100
    assert (result["classes"], result["val_classes"], result["evaluated"]) == (4, 2, ["caf\u00e9", "yak"])


def test_guesses_are_counted_among_the_given_labels():
    made = Classifiers(3, 7, [1.0], momentum=0, weight_decay=0, seed=0, device=torch.device("cpu"))
    with torch.no_grad():
        made.heads[0].weight.copy_(torch.tensor([[1.0, 0, 0]] * 5 + [[0.5, 0, 0], [0, 1, 0]]))
    features, labels = torch.tensor([[1.0, 0.1, 0], [1.0, 0.6, 0]]), torch.tensor([5, 5])
    assert hits(made.heads, features, labels).tolist() == [[0, 0]]
    assert hits(made.heads, features, labels, torch.tensor([5, 6])).tolist() == [[1, 2]]


def test_the_commands_say_which_classes(sets, tmp_path, in_process):
    where = ["--checkpoint", "untrained", "--arch", "resnet10", "--image-size", "32"]
    parts = ["--train", sets / "train", "--val", sets / "val", "--json", tmp_path / "x.json"]
    done = in_process("-m", "fastmoco.knn", *where, *parts)
    answer = json.loads((tmp_path / "x.json").read_text())
    assert "the validation set has 2 of 4 classes (caf\u00e9, yak)" in done.stderr
    assert f"kNN top-1 {answer['knn_top1']:.2f} % (12 images, 2 of 4 classes, k 20); among all classes" in done.stdout
    assert answer["evaluated"] == ["caf\u00e9", "yak"] and answer["knn_top1_all_classes"] <= answer["knn_top1"]
    more = ["--out", tmp_path / "run", "--epochs", "1", "--batch-size", "24", "--fast"]
    done = in_process("-m", "fastmoco.linear", *where, *parts, *more)
    answer = json.loads((tmp_path / "x.json").read_text())
    assert "(12 images, 2 of 4 classes); among all classes top-1" in done.stdout
    assert answer["val_classes"] == 2 and "the validation set has 2 of 4 classes" in done.stderr
