from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fastmoco import knn
from fastmoco.config import GROUPS, Config, ConfigError
from fastmoco.detection import settings
from fastmoco.finetuning.settings import GROUPS as FINETUNE_GROUPS
from fastmoco.finetuning.settings import FinetuneSettings
from fastmoco.probes import linear_settings
from fastmoco.recipes import RECIPES, recipe
from fastmoco.train import parse
from shards.command import UsageError


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
    assert str(config.out) == "a b" and config.queue_size == 65_536
    config = parse(["--order", "sharded", "--order-window", "10000", "--order-lanes", "128"])
    assert (config.order, config.order_window, config.order_lanes) == ("sharded", 10_000, 128)
    assert parse([]) == recipe("moco-v2") and parse([]).order == "auto"
    assert parse(["--recipe=demo"]).recipe == "demo"


def test_flags_of_every_kind():
    config = parse(["--symmetric", "--batch_size=64", "--milestones", "0.5", "0.75", "0.9", "--knn-val", "s3://b/val"])
    assert (config.symmetric, config.batch_size, config.milestones) == (True, 64, (0.5, 0.75, 0.9))
    assert config.knn_val == "s3://b/val" and config.shards == Path("shards")
    assert parse(["--symmetric", "--no-symmetric"]).symmetric is False
    config = parse(["--recipe", "moco-v1-ig1b", "--steps", "None", "--epochs", "2"])
    assert (config.steps, config.epochs) == (None, 2)


def helped(capsys, *arguments):
    """What a parser prints before it ends the command."""
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_help_lists_every_flag_in_its_group_with_the_recipes_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = helped(capsys, "--recipe", "demo", "--help")
    assert max(map(len, text.splitlines())) <= 80
    sections = re.split(r"^([a-z ]+):\n", text, flags=re.MULTILINE)
    listed = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(listed) == ["options", *GROUPS, "other", "examples"]
    for title, group in GROUPS.items():
        flags = re.findall(r"^  (--[a-z-]+)", listed[title], flags=re.MULTILINE)
        assert flags == ["--" + field.name.replace("_", "-") for field in fields(group)]
    assert {"--config", "--recipe", "--seed"} == set(
        re.findall(r"^  (--[a-z-]+)", listed["options"], flags=re.MULTILINE)
    )
    assert {"--version", "--show", "--dry-run"} == set(
        re.findall(r"^  (--[a-z-]+)", listed["other"], flags=re.MULTILINE)
    )
    assert re.search(r"--arch ARCH .*?\(default:\s+resnet10\)", listed["model"], flags=re.DOTALL)
    for field in fields(Config):
        flag = "--" + field.name.replace("_", "-")
        assert re.search(rf"^  {flag}\b[^\n]*\n? +[A-Za-z]\w+", text, flags=re.MULTILINE), f"{flag} has no help"


@pytest.mark.parametrize(
    ("name", "kind", "groups"),
    [
        ("detect", settings.DetectSettings, settings.GROUPS),
        ("knn", knn.Args, knn.GROUPS),
        ("linear", linear_settings.LinearSettings, linear_settings.GROUPS),
        ("finetune", FinetuneSettings, FINETUNE_GROUPS),
    ],
)
def test_the_evaluations_list_their_flags_in_groups_too(in_process, name, kind, groups):
    text = in_process("-m", f"fastmoco.{name}", "--help").stdout
    sections = re.split(r"^([a-z ]+):\n", text, flags=re.MULTILINE)
    listed = {
        title: re.findall(r"^  (--[a-z-]+)", part, flags=re.MULTILINE)
        for title, part in zip(sections[1::2], sections[2::2], strict=True)
    }
    flags = {title: ["--" + field.name.replace("_", "-") for field in fields(group)] for title, group in groups.items()}
    grouped = {flag for part in flags.values() for flag in part}
    own = ["--" + field.name.replace("_", "-") for field in fields(kind)]
    assert list(listed) == ["options", *groups, "other", "examples"]
    none = {"other": ["--version"], "examples": []}
    assert listed == {"options": ["--config", *(flag for flag in own if flag not in grouped)], **flags, **none}


def test_the_helps_defaults_are_the_recipes(in_process):
    assert "(default: 90000)" in in_process("-m", "fastmoco.detect", "--recipe", "coco-fpn-1x", "--help").stdout


def test_show_prints_the_settings_and_marks_differences_from_moco_v1(capsys):
    lines = helped(capsys, "--recipe", "moco-v2", "--lr", "0.1", "--show").splitlines()
    assert lines[0].startswith("moco-v2: MoCo v2 (arXiv 2003.04297")
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  --")}
    assert set(rows) == {"--" + field.name.replace("_", "-") for field in fields(Config)}
    marked = {flag: row for flag, row in rows.items() if "moco-v1:" in row}
    assert marked == {
        "--recipe": ["moco-v2", "moco-v1:", "moco-v1"],
        "--augmentation": ["v2", "moco-v1:", "v1"],
        "--head": ["mlp", "moco-v1:", "linear"],
        "--temperature": ["0.2", "moco-v1:", "0.07"],
        "--lr": ["0.1", "moco-v1:", "none"],
        "--schedule": ["cosine", "moco-v1:", "step"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vgg"}, "unknown --arch 'vgg'; known: resnet10"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"order_window": 0}, "--order-window is 0"),
        ({"order_lanes": 0}, "--order-lanes is 0"),
        ({"temperature": 0.0}, "--temperature is 0.0"),
        ({"momentum_key": 1.5}, "--momentum-key is 1.5"),
        (
            {"mechanism": "end-to-end", "queue_dtype": "bfloat16"},
            "--queue-dtype bfloat16 applies to --mechanism queue only, which end-to-end is not; leave it out",
        ),
        ({"mechanism": "memory-bank", "queue_dtype": "bfloat16"}, "queue only, which memory-bank is not; leave it out"),
        ({"warmup": 1.0}, "--warmup is 1.0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"crop_min": 0.0}, "--crop-min is 0.0; it must be above 0"),
        ({"crop_min": 1.5}, "--crop-min is 1.5; it must be in 0..1"),
        ({"steps": 0}, "--steps is 0"),
        ({"epochs": None}, "neither --epochs nor --steps"),
        ({"knn_every": 1}, "add --knn-val"),
        ({"seed": -1}, "--seed is -1"),
        ({"stream": "a.tar", "shards": "set"}, "--shards set and --stream a.tar are both given"),
        ({"stream": "a.tar", "images_per_epoch": 0}, "--images-per-epoch is 0"),
        ({"stream": "a.tar", "order": "global"}, "--order global applies to --shards only"),
        ({"stream": "a.tar", "knn_every": 1, "knn_val": "val"}, "add --knn-train"),
        ({"images_per_epoch": 5}, "--images-per-epoch 5 applies to --stream only"),
        ({"shards": ("a", "b"), "weights": (1.0,)}, "--weights 1.0 has 1 number, and --shards 2 sets; give one weight"),
        ({"weights": (1.0, 2.0)}, "--weights 1.0 2.0 has 2 numbers, and --shards 1 set; give one weight for each"),
        (
            {"shards": ("a", "b"), "weights": (1.0, 0.0)},
            r"--weights is \(1.0, 0.0\); it must be above 0 and at most 1,000",
        ),
        ({"shards": ("a", "b"), "weights": (-1.0, 1.0)}, "it must be above 0 and at most 1,000, each of them"),
        ({"shards": ("a", "b"), "weights": (float("nan"), 1.0)}, "it must be above 0 and at most 1,000, each of them"),
        ({"shards": ("a", "./a")}, "--shards names a more than once; give it once, and --weights to repeat its images"),
        ({"shards": ()}, "--shards names no set"),
        ({"shards": ("a", "b"), "knn_every": 1, "knn_val": "v"}, "names 2; add --knn-train SHARDS"),
        ({"stream": "a.tar", "weights": (2.0,)}, "--weights 2.0 apply to --shards only; leave them out"),
        ({"stream": "a.tar", "shards": ("a", "b")}, "--shards a b and --stream a.tar are both given"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-a resnet50", "unknown flag -a; here it is --arch"),
        ("-b256", "unknown flag -b; here it is --batch-size"),
        ("-j 32", "unknown flag -j; here it is --threads"),
        ("--moco-k 4096", "unknown flag --moco-k; here it is --queue-size"),
        ("--moco_m=0.99", "unknown flag --moco-m; here it is --momentum-key"),
        ("--moco-t 0.2", "unknown flag --moco-t; here it is --temperature"),
        ("--moco-dim 128", "unknown flag --moco-dim; here it is --feature-dim"),
        ("--mlp --aug-plus --cos", "unknown flag --mlp; here it is --head mlp"),
        ("--aug-plus", "unknown flag --aug-plus; here it is --augmentation v2"),
        ("--cos", "unknown flag --cos; here it is --schedule cosine"),
        ("--wd 1e-4", "unknown flag --wd; here it is --weight-decay"),
        ("--schedule 120 160", "--schedule step --milestones"),
        ("--dist-url tcp://localhost:10001", "torchrun --nproc-per-node N"),
        ("--model resnet18", "unknown flag --model; here it is --arch"),
        ("-o runs/x", "unrecognized arguments: -o runs/x (see fastmoco train --help)"),
        ("--lr 0.03 /data/imagenet", "pack images by fastmoco pack --src DIR --out SET, and give --shards SET"),
    ],
)
def test_the_originals_flags_are_answered_with_ours(arguments, message):
    with pytest.raises(UsageError) as error:
        parse(arguments.split())
    assert message in str(error.value)


def test_the_linear_probe_answers_the_originals_flags_too(in_process):
    done = in_process("-m", "fastmoco.linear", "--pretrained", "a.pth", "--schedule", 60, 80, check=False)
    assert done.returncode == 2 and "unknown flag --pretrained; here it is --checkpoint" in done.stderr
    done = in_process("-m", "fastmoco.linear", "--schedule", 60, 80, check=False)
    assert done.returncode == 2 and "unknown flag --schedule; here it is --milestones" in done.stderr
