"""Views as settings: --augmentation, --crop-min and --views, what a run records of them, and how it continues."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

import fastmoco
from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.config import Config, ConfigError
from fastmoco.recipes import moco_v1, recipe
from fastmoco.report.reading import read_run
from fastmoco.runs.errors import UserError
from fastmoco.train import parse
from fastmoco.trainer.resume import check_compatible
from pipelines import ViewPair, ViewSpec
from tests.support.runs import resnet10_of

SMALL = {"recipe": "demo", "image_size": 32, "batch_size": 8, "queue_size": 16, "threads": 1, "log_every": 1}
SMALL |= {"schedule": "step", "milestones": []}  # the same rate whatever the number of steps


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "views.toml"
    path.write_text('base = "v2"\n[key]\nsolarize = 0.2\n')
    return path


def test_augmentations_are_pairs_of_the_settings_size():
    assert parse(["--augmentation", "v3", "--image-size", "96"]).view_pair == ViewPair.moco_v3(96)
    assert recipe("moco-v2").view_pair == ViewPair.of(ViewSpec.moco_v2())
    crops = parse(["--augmentation", "v3", "--crop-min", "0.08"]).view_pair
    assert {spec.area for spec in crops} == {(0.08, 1.0)}


def test_a_file_replaces_the_recipes_augmentation(file):
    config = parse(["--views", str(file), "--image-size", "64"])
    v2 = ViewSpec.moco_v2(64)
    assert config.view_pair == ViewPair(v2, replace(v2, solarize=0.2))
    assert config.augmentation is None and str(config.views) == "views.toml"
    assert recipe("moco-v2", views=file, image_size=64) == replace(config, recipe="moco-v2")
    assert recipe("moco-v2", views=config.views, image_size=64) == config


def test_recorded_views_come_back_although_the_file_changed(file, tmp_path):
    config = parse(["--views", str(file)])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    file.unlink()
    again = ["--config", str(tmp_path / "config.json")]
    assert parse(again) == config == Config.from_dict(config.to_dict())
    # a flag replaces what is recorded, as of other settings
    assert parse([*again, "--augmentation", "v1"]).view_pair == ViewPair.moco_v1()
    settings = read_run(tmp_path).settings  # what runs are compared by
    assert settings["views"] == "views.toml" and settings["key: solarize"] == 0.2


def test_views_are_given_once(file):
    both = r'--views views.toml and --augmentation v1 are both given; .* may begin with base = "v1"'
    with pytest.raises(ConfigError, match=both):
        parse(["--views", str(file), "--augmentation", "v1"])
    with pytest.raises(ConfigError, match=both):
        replace(moco_v1(), views=file)
    with pytest.raises(ConfigError, match=r"--crop-min 0.1 .* write area = \[0.1, 1.0\] into the file of --views"):
        parse(["--views", str(file), "--crop-min", "0.1"])
    with pytest.raises(ConfigError, match="neither --augmentation nor --views is given"):
        replace(moco_v1(), augmentation=None)
    file.write_text("blur = 1\nsigma = [1, 9]\n")
    with pytest.raises(
        UserError, match=r"--views .*views.toml: image_size 24 is too small .* use 28 or more; or a sma"
    ):
        parse(["--views", str(file), "--image-size", "24"])
    with pytest.raises(ConfigError, match=r"views is 3; it must be a path or a pipelines\.ViewPair"):
        recipe("moco-v2", views=3)


def test_a_wide_blur_is_judged_by_the_side_of_the_run(tmp_path, file):
    """Not by the default of 224 pixels, which a sigma of 80 does not fit."""
    file.write_text("blur = 0.5\nsigma = [0.1, 80]\n")
    config = parse(["--views", str(file), "--image-size", "512"])
    assert (config.view_pair.image_size, config.view_pair.key.sigma) == (512, (0.1, 80.0))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert parse(["--config", str(tmp_path / "config.json")]) == config
    with pytest.raises(UserError, match=r"image_size 224 is too small for this augmentation: use 241 or more"):
        parse(["--views", str(file)])


def test_a_pair_has_the_side_and_the_normalisation_of_the_run():
    pair = ViewPair.moco_v2(96)
    with pytest.raises(
        ConfigError, match="views has image_size 96, and --image-size is 224: give image_size=96 beside it"
    ):
        recipe("moco-v2", views=pair)
    assert recipe("moco-v2", views=pair, image_size=96).view_pair == pair
    assert recipe("moco-v2", views=ViewPair.moco_v2(), image_size=96).view_pair == pair  # of the default size
    with pytest.raises(ConfigError, match=r"views has mean \(0.5, 0.5, 0.5\), and --mean is \(0.485, "):
        recipe("moco-v2", views=ViewPair.moco_v2().changed(mean=(0.5,) * 3))


def test_show_prints_the_numbers_of_both_views(file, capsys):
    with pytest.raises(SystemExit):
        parse(["--views", str(file), "--show"])
    said = capsys.readouterr().out
    assert re.search(r"^views of views.toml: query, key$", said, re.M)
    assert re.search(r"^  solarize +0 +0.2$", said, re.M)


def _state(config):
    return {"config": config.to_dict(), "data": {"digest": "a", "samples": 64}}


def test_a_run_continues_with_equal_views_and_names_the_numbers_of_others(file, tmp_path):
    path, v2 = tmp_path / "step-00000002.pt", recipe("moco-v2")
    of_file = recipe("moco-v2", views=file)
    for before, now in ((of_file, of_file), (v2, recipe("moco-v2", views=ViewPair.moco_v2()))):
        assert check_compatible(path, _state(before), now, "a") == {}
    older = _state(v2)
    del older["config"]["crop_min"], older["config"]["views"]
    assert check_compatible(path, older, recipe("moco-v2", crop_min=0.2), "a") == {}
    file.write_text('base = "v2"\nvertical_flip = 0.5\n[key]\nsolarize = 0.3\n')
    flips = "; ".join(f"--views, {view}: vertical_flip was 0.0, now 0.5" for view in ("query", "key"))
    place = tmp_path.parent / "config.json"
    changed = f"another run: {flips}; --views, key: solarize was 0.2, now 0.3. Use the same settings (--config {place})"
    with pytest.raises(CheckpointError, match=re.escape(changed)):
        check_compatible(path, _state(of_file), recipe("moco-v2", views=file), "a")
    with pytest.raises(CheckpointError, match="another run: --augmentation was 'v2', now 'v3'"):
        check_compatible(path, _state(v2), recipe("moco-v2", augmentation="v3"), "a")


def test_a_run_with_views_from_a_file_continues_by_its_record(file, tmp_path, shard_sets):
    with resnet10_of(1 / 4):
        place = {"out": tmp_path / "run", **SMALL}
        fastmoco.pretrain(shard_sets / "train", views=file, steps=2, **place)
        recorded = json.loads((tmp_path / "run" / "config.json").read_text())
        file.write_text('base = "v2"\n[key]\nsolarize = 0.9\n')
        with pytest.raises(CheckpointError, match=r"--views, key: solarize was 0\.2, now 0\.9"):
            fastmoco.pretrain(shard_sets / "train", views=file, steps=4, **place)
        again = fastmoco.pretrain(shard_sets / "train", views=recorded["views"], steps=4, **place)
        place["out"] = tmp_path / "whole"
        whole = fastmoco.pretrain(shard_sets / "train", views=recorded["views"], steps=4, **place)
    ours, theirs = (checkpoint.load(run.checkpoint)["query_encoder"] for run in (again, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
