"""The comparison of settings in the same time: its arithmetic, its pace, and what it does when it is started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import UserError
from tests.support.runs import resnet10_of

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = (
    *("--recipe", "moco-v2", "--arch", "resnet10", "--image-size", "32", "--batch-size", "16", "--queue-size", "64"),
    *("--augmentation", "v1", "--precision", "fp32", "--knn-every", "1000", "--knn-k", "5"),
)


@pytest.fixture
def tiny(module, monkeypatch):
    """The script with two variants that train in a moment."""
    hour, variant = module("hour"), module("_learning.experiments").Variant
    variants = {
        "moco-v2": variant(TINY, "MoCo", "moco-v2"),
        "zero-init": variant((*TINY, "--batch-size", "8"), "MoCo", "zero-init"),
    }
    monkeypatch.setattr(hour, "VARIANTS", variants)
    return hour


def row(variant, seed, knn, linear):
    """A row of a finished run."""
    return {
        "variant": variant, "seed": seed, "epoch": 48.0, "step": 1100, "knn_top1": knn, "fast_top1": linear,
        "fast_epochs": 30, "minutes": 10.0, "step_seconds": 0.5, "flags": "--steps 1100", "arch": "resnet18",
        "augmentation": "v2", "negatives": 2048, "batch_size": 128, "knn_k": 20, "knn_temperature": 0.07,
        "train_images": 3009, "val_images": 612, "classes": 51, "cpu": "a cpu", "threads": 1, "torch": "2",
        "commit": "abc", "date": f"day {seed}",
    }  # fmt: skip


def test_a_budget_buys_steps_by_the_median_of_the_rounds(module):
    budget = module("_learning.budget")
    from fastmoco.train import parse

    config = parse(list(TINY[:-4]))
    ((work, alone, share),) = budget.works(config)
    assert str(work) == "32 px, batch 16, fp32, sgd" and share == 1 and alone == config
    rows = [{"work": str(work), "seconds": seconds} for seconds in (0.5, 9.0, 0.4)]
    seconds = budget.seconds_per_step(config, budget.paces(rows))
    assert seconds == 0.5 and budget.steps_of(10, seconds) == 1200 and budget.steps_of(0.01, 0.5) == 1
    growing = parse([*TINY[:-4], "--image-size", "64", "--early-sizes", "32@0.5", "48@0.75"])
    shares = [
        (work.image_size, alone.image_size, alone.early_sizes, share) for work, alone, share in budget.works(growing)
    ]
    assert shares == [(32, 32, (), 0.5), (48, 48, (), 0.25), (64, 64, (), 0.25)]
    measured = {str(work): work.image_size / 16 for work, _, _ in budget.works(growing)}
    assert budget.seconds_per_step(growing, measured) == 0.5 * 2 + 0.25 * 3 + 0.25 * 4
    with pytest.raises(UserError, match=r"--minutes 0\.001 are less than a step, which takes 0\.50 s; give more"):
        budget.steps_of(0.001, 0.5)
    with pytest.raises(UserError, match="of 32 px, batch 16, fp32, sgd has not been measured; run with --pace 3"):
        budget.seconds_per_step(config, {})


def test_the_table_marks_what_is_above_every_seed_of_the_base(module):
    rows = [row("moco-v2", 0, 20.0, 30.0), row("moco-v2", 1, 24.0, 32.0)]
    rows += [row("zero-init", 0, 24.5, 31.0), row("zero-init", 1, 30.5, 40.0), row("warmup", 0, 50.0, 50.0)]
    rows.insert(0, row("moco-v2", 0, 12.0, "") | {"epoch": 0.0, "step": 0})
    text = module("_learning.budget_table").table(rows)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    base = ["moco-v2", "the base", "500", "1,100", "48.0", "256", "12.0", "22.0 (20.0, 24.0)", "31.0 (30.0, 32.0)"]
    assert cells[2] == base
    assert cells[3][1] == "`--zero-init-residual`"
    assert cells[3][-2:] == ["**27.5** (24.5, 30.5)", "35.5 (31.0, 40.0)"]
    assert cells[4][-2:] == ["50.0 (50.0)", "50.0 (50.0)"]  # one seed has no spread
    assert "10 minutes of training steps" in text and "each seed (0, 1)" in text
    assert cells[3][-3] == ""  # nothing is known of its start


def test_a_round_measures_every_kind_of_step_once(tiny, shard_sets, tmp_path):
    given = {"train": shard_sets / "train", "val": shard_sets / "val", "set": "a-set", "results": tmp_path}
    with pytest.raises(UserError, match="measure the time of a step first, on a still machine, by --pace 3"):
        tiny.main(tiny.Args(**given))
    path = tmp_path / "hour_a_set_pace.csv"
    with resnet10_of(1 / 4):
        for rounds in (1, 2):  # the second is added to the first
            assert tiny.main(tiny.Args(**given, pace=1, pace_steps=1, variants=("zero-init",) * rounds)) == 0
            rows = tiny.read_csv(path)
            assert [found["work"] for found in rows] == ["32 px, batch 8, fp32, sgd"] * rounds
    assert all(found["seconds"] > 0 and found["steps"] == 1 and found["cpu"] and found["commit"] for found in rows)


def test_wrong_settings_are_refused(tiny, tmp_path):
    given = {"train": tmp_path, "val": tmp_path}
    for more, said in (
        ({"variants": ("v9",)}, "--variants 'v9' is not known; use any of moco-v2, zero-init"),
        ({"set": "a/b"}, "--set 'a/b' is part of file names"),
        ({"minutes": 0.0}, "--minutes is 0.0"),
        ({"pace": -1}, "--pace is -1"),
    ):
        with pytest.raises(UserError, match=said):
            tiny.main(tiny.Args(**given, **more))


def test_rows_of_other_settings_are_not_taken_for_these(tiny, module, tmp_path):
    args = tiny.Args(train=tmp_path, val=tmp_path, results=tmp_path, seeds=(0, 1))
    runs = tiny.planned(args, tiny.VARIANTS, {"moco-v2": 0.5, "zero-init": 0.25})
    assert [(run.name, run.seed, run.flags[1]) for run in runs] == [
        *(("moco-v2", 0, "1200"), ("zero-init", 0, "2400"), ("moco-v2", 1, "1200"), ("zero-init", 1, "2400")),
    ]
    finished = row("moco-v2", 0, 20.0, 30.0) | {"flags": " ".join([*TINY, "--steps", "1200"])}
    module("_results").write_csv(args.path(), [finished, finished | {"seed": 1, "flags": "--steps 1100"}])
    rows = tiny.Rows(args, {}, {})
    assert rows.has(runs[0]) and not rows.has(runs[1])
    with pytest.raises(UserError, match=r"has rows of moco-v2, seed 1, with --steps 1100, not .* --steps 1200; use"):
        rows.has(runs[2])


def test_every_variant_has_flags_that_the_training_takes(module):
    from fastmoco.train import parse

    budget = module("_learning.budget")
    configs = {name: parse([*variant.flags, "--knn-val", "x"]) for name, variant in module("hour").VARIANTS.items()}
    assert {config.arch for config in configs.values()} == {"resnet18"}
    assert len({str(config.to_dict()) for config in configs.values()}) == len(budget.CHANGES)


@pytest.mark.long
def test_a_second_start_makes_only_what_is_missing(tiny, shard_sets, tmp_path, capsys):
    given = {"train": shard_sets / "train", "val": shard_sets / "val", "results": tmp_path, "runs": tmp_path / "runs"}
    args = tiny.Args(**given, seeds=(3,), minutes=0.01)
    works = [
        str(work) for variant in tiny.VARIANTS.values() for work, _, _ in tiny.works(tiny.config_of(args, variant))
    ]
    tiny.write_csv(args.path("_pace"), [{"work": work, "seconds": 0.2} for work in works])
    assert tiny.main(tiny.Args(**given, seeds=(3,), minutes=0.01, variants=("zero-init",))) == 0
    first = tiny.read_csv(args.path())
    assert [(made["variant"], made["step"]) for made in first] == [("zero-init", 0), ("zero-init", 3)]
    assert tiny.main(args) == 0
    assert "hour: 1 runs to make" in capsys.readouterr().err
    rows = tiny.read_csv(args.path())
    assert rows[2:] == first and [made["variant"] for made in rows[:2]] == ["moco-v2", "moco-v2"]
    assert all(made["fast_top1"] != "" and made["step_seconds"] == 0.2 for made in (rows[1], rows[3]))
    assert args.path().with_suffix(".svg").exists() and "| zero-init |" in args.path().with_suffix(".md").read_text()
