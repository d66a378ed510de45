from __future__ import annotations

from dataclasses import replace

import pytest

from fastmoco.config import Config, ConfigError
from fastmoco.recipes import RECIPES, recipe
from fastmoco.train import parse


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_config_json(name):
    config = recipe(name)
    assert config.recipe == name
    assert Config.from_dict(config.to_dict()) == config


def test_papers_numbers():
    v1, ig, v2 = recipe("moco-v1"), recipe("moco-v1-ig1b"), recipe("moco-v2")
    assert (v1.batch_size, v1.base_lr, v1.epochs, v1.queue_size) == (256, 0.03, 200, 65_536)
    assert (v1.momentum_key, v1.temperature, v1.weight_decay, v1.momentum) == (0.999, 0.07, 1e-4, 0.9)
    assert (ig.batch_size, ig.base_lr, ig.steps, ig.decay, ig.decay_steps) == (
        1024,
        0.12,
        1_250_000,
        0.9,
        62_500,
    )
    assert (v2.head, v2.augmentation, v2.schedule, v2.temperature) == ("mlp", "v2", "cosine", 0.2)


def test_flags_override_the_recipe():
    config = parse(["--recipe", "moco-v1", "--batch-size", "64", "--lr", "0.1", "--steps", "7", "--out", "a b"])
    assert (config.recipe, config.batch_size, config.lr, config.steps) == ("moco-v1", 64, 0.1, 7)
    assert str(config.run) == "a b" and config.queue_size == 65_536
    config = parse(["--order", "sharded", "--order-window", "10000", "--order-lanes", "128"])
    assert (config.order, config.order_window, config.order_lanes) == ("sharded", 10_000, 128)
    assert parse([]) == recipe("moco-v2") and parse([]).order == "auto"
    assert parse(["--recipe=demo"]).recipe == "demo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vgg"}, "unknown --arch 'vgg'; known: resnet10"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"order_window": 0}, "--order-window is 0"),
        ({"order_lanes": 0}, "--order-lanes is 0"),
        ({"temperature": 0.0}, "--temperature is 0.0"),
        ({"momentum_key": 1.5}, "--momentum-key is 1.5"),
        ({"warmup": 1.0}, "--warmup is 1.0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"steps": 0}, "--steps is 0"),
        ({"epochs": None}, "neither --epochs nor --steps"),
        ({"knn_every": 1}, "add --knn-val"),
        ({"seed": -1}, "--seed is -1"),
        ({"stream": "a.tar", "shards": "set"}, "--shards set and --stream a.tar are both given"),
        ({"stream": "a.tar", "images_per_epoch": 0}, "--images-per-epoch is 0"),
        ({"stream": "a.tar", "order": "global"}, "--order global is one of --shards"),
        ({"stream": "a.tar", "knn_every": 1, "knn_val": "val"}, "add --knn-train"),
        ({"images_per_epoch": 5}, "--images-per-epoch is an option of --stream"),
    ],
)
def test_a_bad_setting_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(recipe("moco-v2"), **change)


def test_uneven_batches_are_refused_with_a_remedy():
    config = replace(recipe("moco-v2"), batch_size=250)
    with pytest.raises(ConfigError, match=r"--batch-size 250 is not divisible by 4 ranks; use 248 or 252"):
        config.per_rank_batch(4)
    with pytest.raises(ConfigError, match=r"2 ranks × 8 BN splits; use 240 or 256"):
        replace(config, bn_splits=8).per_rank_batch(2)
    with pytest.raises(ConfigError, match="use at least 8"):
        replace(config, batch_size=4).per_rank_batch(4)
    assert config.per_rank_batch(2) == 125


def test_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match="unknown --recipe 'simclr'; known: moco-v1"):
        parse(["--recipe", "simclr"])
