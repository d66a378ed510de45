from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from shards.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "learning.py"
SMALL = (
    *("--arch", "resnet10", "--image-size", "32", "--batch-size", "16", "--queue-size", "64", "--augmentation", "v1"),
    *("--epochs", "1", "--knn-every", "1"),
)


def row(variant, seed, knn, epoch=4.0, linear="", **more):
    """A row as a run gives it."""
    from fastmoco.recipes import recipe

    place = {"epoch": epoch, "step": int(epoch) * 10, "loss": 5.5, "knn_top1": knn}
    probe = {"linear_top1": linear, "linear_lr": 3.0 if linear else "", "linear_epochs": 20 if linear else ""}
    probe |= {"fast_top1": "", "fast_lr": "", "fast_epochs": ""}
    machine = {"seconds": 60.0, "cpu": "a cpu", "threads": 1, "torch": "2", "commit": "abc", "date": f"day {seed}"}
    machine |= {"train_images": 3009, "val_images": 612, "classes": 51}
    settings = recipe("demo").to_dict() | {"negatives": 1024}
    return settings | {"variant": variant, "seed": seed} | place | probe | machine | more


@pytest.mark.long
def test_variants_are_trained_probed_and_tabled(command, shard_sets, tmp_path):
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val")
    where = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    call = (
        sys.executable,
        SCRIPT,
        "small-photos",
        *sets,
        "--variants",
        "papers",
        "zero-init",
        "--seeds",
        "3",
        *where,
        *SMALL,
    )
    shown = command(*call).stdout
    with (tmp_path / "results/small_photos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["epoch"], row["zero_init_residual"]) for row in rows] == [
        *(("papers", "0.0", "False"), ("papers", "1.0", "False")),
        *(("zero-init", "0.0", "True"), ("zero-init", "1.0", "True")),
    ]
    assert all(row["seed"] == "3" and row["arch"] == "resnet10" and row["torch"] and row["cpu"] for row in rows)
    metrics = (tmp_path / "runs/small-photos/zero-init-seed3/metrics.jsonl").read_text().splitlines()
    probe = json.loads(metrics[-1])["knn_top1"]
    assert float(rows[-1]["knn_top1"]) == pytest.approx(probe, abs=5e-4)
    table = (tmp_path / "results/small_photos.md").read_text()
    (line,) = (line for line in table.splitlines() if line.startswith("| zero-init |"))
    assert f"{probe:.1f} |" in line and table.strip() in shown
    command(*call)  # finished runs are not repeated
    assert (tmp_path / "runs/small-photos/zero-init-seed3/metrics.jsonl").read_text().splitlines() == metrics


def test_an_unknown_variant_and_a_failed_run_are_named(command, shard_sets, tmp_path):
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--runs", tmp_path, "--results", tmp_path)
    wrong = command(sys.executable, SCRIPT, "small-photos", *sets, "--variants", "other", check=False)
    assert wrong.returncode == 2 and "--variants 'other' is not known; use any of papers, bn-splits-8" in wrong.stderr
    failed = command(
        sys.executable,
        SCRIPT,
        "small-photos",
        *sets,
        "--variants",
        "papers",
        "--seeds",
        "0",
        "--arch",
        "resnet9",
        check=False,
    )
    assert failed.returncode == 1 and "1 of 1 runs failed" in failed.stderr and "resnet9" in failed.stderr
    assert not list(tmp_path.glob("*.csv"))


def test_rows_of_other_variants_and_seeds_are_kept(module, tmp_path):
    learning, read_csv = module("learning"), module("_results").read_csv
    args = learning.Args(train=tmp_path, val=tmp_path, set="photos", results=tmp_path)
    learning.write("momentum", args, [row("m-0", 0, 12.0), row("m-0", 1, 13.0)])
    learning.write("momentum", args, [row("m-0", 1, 14.0), row("m-0.9", 0, 20.0)])  # the second seed again
    path = tmp_path / "momentum_photos.csv"
    found = [(each["variant"], each["seed"], each["knn_top1"]) for each in read_csv(path)]
    assert found == [("m-0", 0, 12.0), ("m-0", 1, 14.0), ("m-0.9", 0, 20.0)]
    assert "13.0 (12.0 to 14.0)" in path.with_suffix(".md").read_text()
    with pytest.raises(module("_command").BenchmarkError, match=r"momentum_photos\.csv has other columns"):
        learning.write("momentum", args, [row("m-0", 0, 12.0) | {"another": 1}])
    assert len(read_csv(path)) == 3


def test_a_table_has_means_spread_and_the_papers_figures(module):
    experiment = module("_learning.experiments").EXPERIMENTS["momentum"]
    rows = [row("m-0", seed, 12.0, epoch=0.0) for seed in (0, 1)]
    rows += [row("m-0", 0, 13.0), row("m-0", 1, 14.5), row("m-0.999", 0, 30.25, epoch=0.0), row("m-0.999", 0, 25.0)]
    text = module("_learning.table").table("momentum", experiment, "small", rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[2] == ["m 0", "13.8 (13.0 to 14.5)", "13.0, 14.5", "12.0", "5.50", "60", "fails"]
    assert lines[3] == ["m 0.999", "25.0 (25.0 to 25.0)", "25.0", "30.2", "5.50", "60", "59.0"]
    assert (
        "3,009 training images, 612 validation images, 51 classes. Seeds 0, 1; 4 epochs." in text
        and "a cpu, 1 thread(s)" in text
        and "day 0 to day 1" in text
    )
    assert "arch resnet10" in text and "arXiv 1911.05722, section 4.1" in text


def test_a_table_of_baselines_has_both_probes(module):
    experiment = module("_learning.experiments").EXPERIMENTS["baselines"]
    rows = [row("untrained", 0, 12.0, linear=20.0, step=""), row("supervised", 0, 40.0, linear=51.5, step="")]
    lines = module("_learning.table").table("baselines", experiment, "small", rows).splitlines()
    assert "| untrained | 12.0 (12.0 to 12.0) | 12.0 |  | 20.0 (20.0 to 20.0) |" in lines[2]
    assert "| supervised | 40.0 (" in lines[3] and "| 51.5 (" in lines[3] and lines[3].endswith("| 76.5 |")


def of_family(variant, arch, before, after, **more):
    """The two rows of a run that is compared with its untrained encoder and with timm's."""
    compared = {"untrained_fast_top1": 20.0, "optimiser": "sgd", "parameters": 4_900_000} | more
    compared = {"timm_difference": 0.0, "timm_difference_contiguous": 2e-7, "timm_largest": 3.25} | compared
    ends = [
        row(variant, 0, before, epoch=0.0, **compared),
        row(variant, 0, after, **compared, fast_top1=31.0, fast_lr=0.3),
    ]
    return [end | {"arch": arch, "val_images": 612, "fast_epochs": 30} for end in ends]


def test_a_table_of_families_has_each_encoder_before_and_after(module):
    experiment = module("_learning.experiments").EXPERIMENTS["families"]
    rows = of_family("resnet", "timm:resnet10t", 24.0, 36.0) + of_family("vit", "timm:vit_tiny_patch16_224", 24.5, 26.0)
    text = module("_learning.table").table("families", experiment, "small", rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    # (36 - 24) / sqrt((24 * 76 + 36 * 64) / 612) = 4.62
    assert lines[2][:8] == ["resnet10t", "4.9 M", "40", "sgd", "0", "24.0", "36.0", "4.6"]
    assert lines[2][8:] == ["20.0", "31.0", "4.5", "0.0e+00", "2.0e-07", "3.2", "60"]
    assert (lines[3][0], lines[3][7]) == ("vit_tiny_patch16_224", "0.6")
    figure = module("_learning.plot").plot("families", experiment, "small", "a set", rows)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["kNN, untrained"][:2] == [24.0, 24.5] and lines["kNN"][:2] == [36.0, 26.0]
    assert lines["linear --fast, untrained"][:2] == [20.0, 20.0] and lines["linear --fast"] == [31.0, 31.0]


@pytest.mark.long
def test_an_encoder_of_timm_is_compared_with_itself_and_with_its_export(command, shard_sets, tmp_path):
    pytest.importorskip("timm")
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--seeds", "3", "--variants", "resnet")
    where = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    small = ("--arch", "timm:test_resnet", "--image-size", "32", "--batch-size", "16", "--queue-size", "64")
    shown = command(sys.executable, SCRIPT, "families", *sets, *where, *small, "--epochs", "1").stdout
    with (tmp_path / "results/families.csv").open() as file:
        before, after = csv.DictReader(file)
    run = tmp_path / "runs/families/resnet-seed3"
    top1 = {
        name: max(one["linear_top1"] for one in json.loads((run / f"{name}.json").read_text())["results"])
        for name in ("fast", "untrained-fast")
    }
    assert float(after["untrained_fast_top1"]) == pytest.approx(top1["untrained-fast"], abs=5e-4)
    assert float(after["fast_top1"]) == pytest.approx(top1["fast"], abs=5e-4)
    assert (before["epoch"], after["epoch"], after["arch"]) == ("0.0", "1.0", "timm:test_resnet")
    assert float(after["timm_difference"]) < 1e-6 and int(after["parameters"]) > 1000
    assert float(after["timm_difference_contiguous"]) < 1e-4 * float(after["timm_largest"])
    assert "| test_resnet |" in shown


@pytest.mark.parametrize("name", ["mechanisms", "momentum", "encoders", "pieces", "baselines"])
def test_a_plot_has_our_points_and_the_papers(module, name):
    experiment = module("_learning.experiments").EXPERIMENTS[name]
    linear = 33.0 if experiment.linear else ""
    variants = experiment.variants["small"]
    rows = [row(variant, seed, 20.0 + seed, linear=linear) for variant in variants for seed in (0, 1)]
    rows += [row(variant, 0, 12.0, epoch=0.0) for variant in variants]
    rows.sort(key=lambda made: made["epoch"])
    figure = module("_learning.plot").plot(name, experiment, "small", "a set", rows)
    ours, papers = figure.axes
    numbers = [reported for reported in module("_learning.paper").REPORTED[name] if reported.top1 is not None]
    lines = [line for line in ours.lines if line.get_label() in ours.get_legend_handles_labels()[1]]
    means = [value for line in lines for value in line.get_ydata()]
    assert means == [20.5] * len(variants) + [33.0] * (len(variants) if linear else 0)
    assert sorted(value for line in papers.lines for value in line.get_ydata()) == sorted(
        reported.top1 for reported in numbers
    )
    rings = [value for found in ours.collections for value in found.get_offsets()[:, 1] if found.get_offsets().any()]
    assert rings.count(20.0) == rings.count(21.0) == len(variants)
    assert ours.get_title("left").startswith("a set: kNN") and "ImageNet-1M" in papers.get_title("left")
    assert ("fails" in [text.get_text() for text in papers.texts]) == (name == "momentum")
    assert [tick.get_text().strip() for tick in ours.get_xticklabels()] == list(
        dict.fromkeys(variant.at for variant in variants.values())
    )


def test_every_variant_has_flags_that_the_training_takes(module):
    from fastmoco.train import parse

    for name, experiment in module("_learning.experiments").EXPERIMENTS.items():
        for scale, variants in experiment.variants.items():
            configs = {label: parse([*variant.flags, "--knn-val", "x"]) for label, variant in variants.items()}
            assert len({json.dumps(config.to_dict()) for config in configs.values()}) >= len(configs) - 1  # untrained
            if scale == "imagenet":
                moco = [configs[label] for label, variant in variants.items() if variant.kind == "moco"]
                assert {(config.epochs, config.image_size) for config in moco} == {(200, 224)}, name
                if name != "encoders":
                    assert {config.arch for config in moco} == {"resnet50"}, name
    sizes = module("_learning.experiments").EXPERIMENTS["mechanisms"].variants["imagenet"]
    largest = parse([*sizes["end-to-end-1024"].flags, "--knn-val", "x"])
    assert (largest.mechanism, largest.batch_size, largest.negatives) == ("end-to-end", 1024, 1023)


def test_unknown_parts_of_an_experiment_are_refused(module, tmp_path):
    learning = module("learning")
    sets = {"train": tmp_path, "val": tmp_path}
    for more, said in (
        ({"variants": ("m-1",)}, "--variants 'm-1' is not known; use any of m-0, m-0.9"),
        ({"jobs": 0}, "--jobs is 0"),
        ({"set": "a/b"}, "--set 'a/b' is part of file names"),
    ):
        with pytest.raises(UserError, match=said):
            learning.chosen("momentum", learning.Args(**sets, **more))
    with pytest.raises(UserError, match="small-photos has no --scale imagenet"):
        learning.chosen("small-photos", learning.Args(**sets, scale="imagenet"))


@pytest.mark.long
def test_a_supervised_encoder_is_trained_and_probed(command, shard_sets, tmp_path):
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--set", "made-up")
    where = ("--runs", tmp_path / "runs", "--results", tmp_path / "results", "--seeds", "5")
    flags = ("--image-size", "24", "--batch-size", "16", "--epochs", "2", "--precision", "fp32")
    shown = command(sys.executable, SCRIPT, "baselines", *sets, "--variants", "supervised", *where, *flags).stdout
    with (tmp_path / "results/baselines_made_up.csv").open() as file:
        (found,) = csv.DictReader(file)
    run = tmp_path / "runs/baselines-made-up/supervised-seed5"
    assert float(found["knn_top1"]) == pytest.approx(json.loads((run / "knn.json").read_text())["knn_top1"], abs=5e-4)
    for probe in ("linear", "fast"):
        results = json.loads((run / f"{probe}.json").read_text())["results"]
        assert float(found[f"{probe}_top1"]) == pytest.approx(max(one["linear_top1"] for one in results), abs=5e-4)
    assert (found["seed"], found["epoch"], found["image_size"], found["lr"]) == ("5", "2", "24", "")
    assert (run / "log.txt").read_text().count("of 12: loss") == 2  # an epoch has 6 steps
    assert "supervised" in shown and str(tmp_path) not in shown
    assert "made-up: kNN and linear" in (tmp_path / "results/baselines_made_up.svg").read_text()
