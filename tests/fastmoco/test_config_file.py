"""Settings from a file: the config.json of a run, and TOML."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastmoco import linear
from fastmoco.config import Config, ConfigError
from fastmoco.recipes import RECIPES, recipe
from fastmoco.train import parse
from shards.command import UsageError


@pytest.mark.parametrize("name", RECIPES)
def test_a_runs_settings_come_back_from_its_config_json(tmp_path, name):
    config = replace(recipe(name), out=tmp_path / "run", lr=0.1 + 0.2, milestones=(0.1 + 0.2,), knn_val="s3://b/val")
    recorded = tmp_path / "config.json"
    recorded.write_text(json.dumps(config.to_dict() | {"environment": {"date": "2026-01-01"}}))
    assert parse(["--config", str(recorded)]) == config
    assert parse([f"--config={recorded}", "--out", "other"]) == replace(config, out=Path("other"))
    assert Config.from_dict(json.loads(recorded.read_text())) == config


def test_toml_has_the_names_of_the_flags_and_flags_override_it(tmp_path):
    (tmp_path / "a.toml").write_text(
        'recipe = "demo"\nbatch-size = 32\nqueue_size = 128\nsymmetric = true\nmilestones = [0.5, 0.75]\nlr = 1\n'
    )
    config = parse(["--config", str(tmp_path / "a.toml"), "--queue-size", "64", "--no-symmetric"])
    assert config == replace(recipe("demo"), batch_size=32, queue_size=64, milestones=(0.5, 0.75), lr=1.0)
    assert isinstance(config.lr, float)  # as the flag would give it
    (tmp_path / "b.toml").write_text("batch-size = 32\n")
    assert parse(["--recipe", "demo", "--config", str(tmp_path / "b.toml")]) == replace(recipe("demo"), batch_size=32)


def test_several_sets_and_their_weights_are_lists_everywhere(tmp_path):
    config = parse(["--shards", "a", "s3://bucket/b", "--weights", "1", "0.5", "--seed", "1"])
    assert (config.shards, config.weights) == ((Path("a"), "s3://bucket/b"), (1.0, 0.5))
    assert config.sets == config.shards
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert parse(["--config", str(tmp_path / "config.json")]) == config
    (tmp_path / "a.toml").write_text('shards = ["a", "s3://bucket/b"]\nweights = [1, 0.5]\nseed = 1\n')
    assert parse(["--config", str(tmp_path / "a.toml")]) == config
    # one set is no list, neither here nor in config.json, which earlier versions read
    one = parse(["--shards", "a"])
    assert (one.shards, one.sets, one.to_dict()["shards"]) == (Path("a"), (Path("a"),), "a")
    (tmp_path / "b.toml").write_text("shards = [1]\n")
    with pytest.raises(ConfigError, match="shards is 1; it must be a text"):
        parse(["--config", str(tmp_path / "b.toml")])


def test_the_probes_take_files_too_and_find_their_required_settings_there(tmp_path):
    (tmp_path / "probe.toml").write_text('checkpoint = "run"\ntrain = "t"\nval = "v"\nlr = [10, 30]\nout = "o"\n')
    words = ["--config", str(tmp_path / "probe.toml"), "--val", "w"]
    settings = linear.parser(words).parse_args(words)
    assert (settings.checkpoint, settings.train, settings.val) == ("run", "t", "w")
    assert (settings.lr, settings.out) == ((10.0, 30.0), Path("o"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "batchsize = 3", "unknown setting 'batchsize'; did you mean batch_size or base_batch_size?"),
        ("a.toml", "x = 3", "unknown setting 'x'; the flags of --help are its names"),
        ("a.toml", "batch_size = 3\nbatch-size = 4", "has batch_size twice"),
        ("a.toml", "batch_size = 'many'", "batch_size is 'many'; it must be a whole number"),
        ("a.toml", "batch_size = true", "batch_size is True; it must be a whole number"),
        ("a.toml", "symmetric = 1", "symmetric is 1; it must be true or false"),
        ("a.toml", "head = 'round'", "head is 'round'; it must be one of linear, mlp"),
        ("a.toml", "milestones = 0.5", "milestones is 0.5; it must be a list"),
        ("a.toml", "out = 5", "out is 5; it must be a text"),
        ("a.toml", "temperature = 0", "--temperature is 0.0; it must be above 0"),
        ("a.toml", "recipe = 'simclr'", "unknown --recipe 'simclr'"),
        ("a.toml", "[model]\nhead = 'mlp'", "unknown setting 'model'"),
        ("a.toml", "head: mlp", "a.toml is not TOML"),
        ("a.json", "{", "a.json is not JSON"),
        ("a.json", "[1]", "a.json holds no names with values"),
        ("a.json", '{"batch_size": null}', "batch_size is None; it must be a whole number"),
        ("b.toml", None, "b.toml cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(["--config", str(tmp_path / name)])


def test_a_file_and_a_flag_do_not_name_two_recipes(tmp_path):
    (tmp_path / "a.toml").write_text('recipe = "demo"')
    assert parse(["--recipe", "demo", "--config", str(tmp_path / "a.toml")]) == recipe("demo")
    with pytest.raises(ConfigError, match="--recipe is moco-v1, but demo in the file of --config; leave out --recipe"):
        parse(["--recipe", "moco-v1", "--config", str(tmp_path / "a.toml")])
    with pytest.raises(UsageError, match="--config"):
        parse(["--config"])
