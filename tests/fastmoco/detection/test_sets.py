"""Reading VOC- and COCO-format folders: annotations, a detector's batches, and errors."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastmoco.config import ConfigError
from fastmoco.detection.batches import TrainingBatches
from fastmoco.detection.errors import DetectionError
from fastmoco.detection.images import Reader, resized_shape
from fastmoco.detection.sets import open_set, open_sets
from fastmoco.detection.settings import DetectSettings
from fastmoco.ranks.world import World


def reader(made, **more):
    return replace(Reader((made.side[1],), 48, 400, True, 0), **more)


def test_both_formats_describe_the_same_scenes(made):
    scenes = made.scenes(0, made.train)
    voc, _ = open_sets(made.settings("voc-c4", None))
    coco, _ = open_sets(made.settings("coco-c4-1x", None))
    assert voc.classes == made.classes and voc.categories == (1, 2, 3)
    assert coco.classes == ("box", "disc", "wedge") and coco.categories == (3, 7, 12)  # in the order of the numbers
    assert open_set(f"{made.coco}/train:{made.coco}/annotations/instances_train.json", ()).digest == coco.digest
    assert len(voc.photos) == made.train and len({p.id for p in voc.photos}) == made.train
    for photo, (_, things) in zip(voc.photos, scenes, strict=True):
        assert photo.boxes.tolist() == [list(map(float, thing.box)) for thing in things]
        assert [voc.classes[label - 1] for label in photo.labels] == [made.classes[t.label] for t in things]
        assert photo.ignored.tolist() == [thing.difficult for thing in things] and photo.trained.all()
    assert sum(photo.ignored.sum() for photo in voc.photos) > 5
    for photo, (_, things) in zip(coco.photos, scenes, strict=True):
        assert photo.boxes.tolist() == [list(map(float, thing.box)) for thing in things]
        assert [coco.classes[label - 1] for label in photo.labels] == [made.classes[t.label] for t in things]
        assert photo.ignored.tolist() == (~photo.trained).tolist() == [thing.crowd for thing in things]


def test_outlines_of_all_kinds_become_the_masks(made):
    coco = open_set(f"{made.coco}:train", ())
    width, height = made.side
    for photo, (_, things) in zip(coco.photos[:20], made.scenes(0, 20), strict=True):
        masks = photo.masks(np.ones(len(things), bool), height, width)
        for mask, thing in zip(masks, things, strict=True):
            shared = (mask.astype(bool) & thing.mask).sum() / (mask.astype(bool) | thing.mask).sum()
            assert shared == 1 if thing.label == 0 or thing.crowd else shared > 0.9  # a polygon's edges are rounded


def test_boxes_and_masks_stay_on_their_things_when_resized_and_flipped(made):
    photos = open_set(f"{made.coco}:train", ()).photos[:8]
    seen = set()
    for epoch in range(4):
        for place, photo in enumerate(photos):
            sample = reader(made, min_sizes=(60, 130)).training(photo, place, epoch)
            again = reader(made, min_sizes=(60, 130)).training(photo, place, epoch)
            assert torch.equal(sample.image, again.image)
            assert min(sample.image.shape[1:]) in (60, 130)
            seen.add((place, tuple(sample.image.shape), sample.image[0, 0, 0].item()))
            for box, mask in zip(sample.target["boxes"], sample.target["masks"], strict=True):
                rows, columns = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
                edges = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                assert (edges - box).abs().max() < 2.5  # pixels: both are rounded before and after resizing
    assert len(seen) > 2 * len(photos)  # sizes and flips differ from epoch to epoch


@pytest.mark.parametrize("left, kept", [(-5.0, True), (-20.0, False)])
def test_boxes_are_trained_on_as_far_as_they_are_in_the_photograph(made, left, kept):
    photo = open_set(f"{made.coco}:train", ()).photos[0]
    width, height = made.side
    boxes = np.array([[left, 3, left + 15, height + 4]], np.float32)
    beyond = replace(
        photo,
        boxes=boxes,
        labels=np.array([2]),
        trained=np.array([True]),
        outlines=((np.array([0, 0, 9, 0, 9, 9.0]),),),
    )
    sample = reader(made, min_sizes=(2 * min(width, height),), max_size=1000).training(beyond, 0, 0)
    target, bottom = sample.target, 2.0 * height
    upright, flipped = [[0.0, 6.0, 20.0, bottom]], [[2.0 * width - 20, 6.0, 2.0 * width, bottom]]
    assert target["boxes"].tolist() in ([upright, flipped] if kept else [[]])
    assert target["labels"].tolist() == ([2] if kept else []) and len(target["masks"]) == int(kept)


def test_images_are_resized_as_in_the_paper():
    assert resized_shape(375, 500, 800, 1333) == (800, 1067)
    assert resized_shape(300, 900, 800, 1333) == (444, 1333)  # the long side is the limit


def test_the_order_is_a_function_of_seed_and_step_alone(made):
    train, _ = open_sets(made.settings("voc-c4", None))

    def ids(first, last, here, seed=0):
        batches = TrainingBatches(train, reader(made, masks=False), 4, seed, here, 2)
        assert batches.steps_per_epoch == made.train // 4
        return [[sample.photo.id for sample in batch] for batch in batches.steps(first, last)]

    whole = ids(0, 52, made.here)
    assert len({number for batch in whole[:48] for number in batch}) == made.train  # each once in an epoch
    assert ids(45, 52, made.here) == whole[45:] != ids(45, 52, made.here, seed=1)
    halves = [ids(0, 3, World(rank, 2, torch.device("cpu"))) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole[:3]


def test_an_outline_without_area_is_not_trained_on_where_masks_are(made, copies):
    path = copies / "coco/annotations/instances_train.json"
    content = json.loads(path.read_text())
    flat = [one for one in content["annotations"] if one["category_id"] == 3 and not one["iscrowd"]][:2]
    for one in flat:
        one["segmentation"] = [[1, 1, 5, 5]]
    path.write_text(json.dumps(content))
    sets = {"train": (f"{copies / 'coco'}:train",), "val": f"{copies / 'coco'}:val"}
    kept = {
        mask: sum(
            photo.trained.sum() for photo in open_sets(made.settings("coco-c4-1x", None, mask=mask, **sets))[0].photos
        )
        for mask in (True, False)
    }
    assert kept[False] - kept[True] == len(flat)
    del flat[0]["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(DetectionError, match="has objects without outlines, which --mask needs"):
        open_sets(made.settings("coco-c4-1x", None, **sets))


@pytest.fixture
def copies(made, tmp_path):
    shutil.copytree(made.voc, tmp_path / "voc")
    shutil.copytree(made.coco, tmp_path / "coco")
    return tmp_path


def edited(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def re_edited(path, old, new):
    path.write_text(re.sub(old, new, path.read_text(), count=1))


def without(part, split="train", left=None):
    """Remove a part of a file of instances, or put `left` in its place."""

    def change(root):
        path = root / f"coco/annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        if left is None:
            del content[part]
        else:
            content[part] = left
        path.write_text(json.dumps(content))

    return change


MISTAKES = {
    "no split": ("voc", lambda r: (r / "voc/ImageSets/Main/trainval.txt").unlink(), "no .*trainval.txt; splits"),
    "empty split": ("voc", lambda r: (r / "voc/ImageSets/Main/trainval.txt").write_text("\n"), "lists no photograph"),
    "no annotation": ("voc", lambda r: (r / "voc/Annotations/000003.xml").unlink(), "no annotation .*000003.xml"),
    "no image": ("voc", lambda r: (r / "voc/JPEGImages/000003.jpg").unlink(), "no photograph .*000003.jpg"),
    "class": (
        "voc", lambda r: edited(r / "voc/Annotations/000000.xml", "<name>", "<name>odd "),
        "000000.xml has an object of the class 'odd .*', which is not in --classes disc box wedge",
    ),
    "no number": (
        "voc", lambda r: re_edited(r / "voc/Annotations/000001.xml", r"<xmax>\d+", "<xmax>nan"),
        "000001.xml has a .* whose box .*nan.* has no area",
    ),
    "listed twice": (
        "voc", lambda r: edited(r / "voc/ImageSets/Main/trainval.txt", "000003", "000002"),
        "trainval.txt lists 000002 twice",
    ),
    "nothing to find": (
        "coco", lambda r: without("annotations", "val", [])(r), "--val .*coco:val has no object to find",
    ),
    "xml": ("voc", lambda r: (r / "voc/Annotations/000001.xml").write_text("<a>"), "000001.xml is invalid"),
    "inside out": (
        "voc", lambda r: edited(r / "voc/Annotations/000001.xml", "<xmax>", "<xmax>-"), "000001.xml has a .* whose box",
    ),
    "no folder": ("voc", lambda r: shutil.rmtree(r / "voc"), "there is no folder .*voc, which"),
    "no sets in it": ("voc", lambda r: shutil.rmtree(r / "voc/ImageSets"), "neither ImageSets/ .* nor annotations/"),
    "no instances": (
        "coco", lambda r: (r / "coco/annotations/instances_train.json").unlink(), "no file of instances .*_train.json",
    ),
    "no images": ("coco", lambda r: shutil.rmtree(r / "coco/train"), "there is no folder of images .*train"),
    "no categories": ("coco", without("categories"), "instances_train.json has no categories"),
    "no json": (
        "coco", lambda r: (r / "coco/annotations/instances_train.json").write_text("{"), "_train.json is no JSON",
    ),
    "unlisted category": (
        "coco", lambda r: edited(r / "coco/annotations/instances_train.json", '"category_id": 7', '"category_id": 99'),
        "annotations of the category 99, which it does not list",
    ),
    "other classes": (
        "coco", lambda r: edited(r / "coco/annotations/instances_val.json", '"name": "disc"', '"name": "coin"'),
        "differ in their classes, by coin, disc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_set_is_refused_with_the_reason(made, copies, mistake):
    kind, change, message = MISTAKES[mistake]
    change(copies)
    name, parts = {"voc": ("voc-c4", ("trainval", "test")), "coco": ("coco-c4-1x", ("train", "val"))}[kind]
    train, val = (f"{copies / kind}:{part}" for part in parts)
    with pytest.raises(DetectionError, match=message):
        open_sets(made.settings(name, None, train=(train,), val=val))


def test_unicode_forms_of_a_class_are_one(made, copies):
    for path in (copies / "coco/annotations").iterdir():
        form = "caf\u00e9" if path.stem == "instances_train" else "cafe\u0301"
        edited(path, '"name": "disc"', f'"name": "{form}"')
    for path in (copies / "voc/Annotations").iterdir():
        path.write_text(path.read_text().replace("<name>disc<", "<name>cafe\u0301<"))
    classes = tuple(name.replace("disc", "caf\u00e9") for name in made.classes)
    for name, kind, parts in (("coco-c4-1x", "coco", ("train", "val")), ("voc-c4", "voc", ("trainval", "test"))):
        train, val = (f"{copies / kind}:{part}" for part in parts)
        opened, _ = open_sets(made.settings(name, None, train=(train,), val=val, classes=classes))
        assert "caf\u00e9" in opened.classes


def test_checkpoints_may_be_due_by_time_alone():
    assert DetectSettings().minutes_between_checkpoints == 0
    assert DetectSettings(checkpoint_every=0).minutes_between_checkpoints == 10


def test_bad_settings_are_refused(made):
    for change, message in (
        ({"arch": "resnet51"}, "unknown --arch 'resnet51'"),
        ({"batch_size": 0}, "--batch-size is 0; it must be at least 1"),
        ({"detector": "fpn", "anchor_sizes": (32,)}, "has five levels"),
        ({"lr": 0.0}, "--lr is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            made.settings("voc-c4", None, **change)
    with pytest.raises(DetectionError, match="has objects without outlines, which --mask needs"):
        open_sets(made.settings("voc-c4", None, mask=True))
    train, _ = open_sets(made.settings("voc-c4", None))
    for size, here, message in (
        (193, made.here, "has 192 photographs, fewer than --batch-size 193"),
        (5, World(1, 2, torch.device("cpu")), "--batch-size 5 is not divisible by 2 ranks; use 6"),
    ):
        with pytest.raises(DetectionError, match=message):
            TrainingBatches(train, reader(made), size, 0, here, 1)


@pytest.mark.parametrize("part", ["more", "test"])
@pytest.mark.parametrize("broken", ["cut short", "of another size"])
def test_a_broken_image_is_named_before_the_first_step(made, copies, in_process, broken, part):
    name = {"more": "000100", "test": "001000"}[part]
    path = copies / f"voc/JPEGImages/{name}.jpg"
    if broken == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        Image.new("RGB", (30, 20)).save(path)
    sets = ("--train", f"{copies / 'voc'}:more", "--val", f"{copies / 'voc'}:test", "--classes", *made.classes)
    few = ("--arch", "resnet10", "--batch-size", 4, "--iterations", 9, "--test-size", 32, "--out", copies / "run")
    done = in_process("-m", "fastmoco.detect", *sets, *few, check=False)
    assert done.returncode == 2 and f"{name}.jpg" in done.stderr
    cause = "cannot be decoded" if broken == "cut short" else "has 30 × 20 pixels, but its annotation says"
    assert cause in done.stderr
    assert not (copies / "run/metrics.jsonl").exists()  # no step was made


def test_a_file_without_weights_is_named_with_its_flag(made, tmp_path, in_process):
    (tmp_path / "notes").write_text("no weights\n")
    sets = ("--train", f"{made.voc}:trainval", "--val", f"{made.voc}:test", "--classes", *made.classes)
    few = ("--init", tmp_path / "notes", "--arch", "resnet10", "--threads", 1, "--out", tmp_path / "run")
    done = in_process("-m", "fastmoco.detect", *sets, *few, check=False)
    assert done.returncode == 2
    assert f"fastmoco detect: --init: {tmp_path / 'notes'} cannot be read: it was not written" in done.stderr


def test_the_command_says_what_is_missing(in_process, monkeypatch):
    def refused(*arguments):
        done = in_process("-m", "fastmoco.detect", *arguments, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "give --train SET [SET …] and --val SET" in refused("--val", "voc:test")
    assert "unknown --recipe 'voc-c5'; known: voc-c4, coco-c4-1x" in refused("--recipe", "voc-c5")
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert "pip install 'fastmoco[detect]'" in refused("--train", "voc:train", "--val", "voc:test")
