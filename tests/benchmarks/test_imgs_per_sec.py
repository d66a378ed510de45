from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "imgs_per_sec.py"
SMALL = ("--arch", "resnet10", "--image-size", "32", "--batch-size", "8", "--steps", "2", "--repeats", "2")


def test_it_finds_shards_in_the_current_folder_and_writes_json(command, shard_sets, tmp_path):
    (tmp_path / "shards").symlink_to(shard_sets / "train")
    shown = command(sys.executable, SCRIPT, *SMALL, "--json", "new/rates.json").stdout
    rates = json.loads((tmp_path / "new/rates.json").read_text())
    names = ("loader_imgs_per_sec", "model_imgs_per_sec", "end_to_end_imgs_per_sec")
    assert all(rates[name] > 0 for name in names)
    smaller = min(rates["loader_imgs_per_sec"], rates["model_imgs_per_sec"])
    assert rates["efficiency"] == pytest.approx(rates["end_to_end_imgs_per_sec"] / smaller)
    shared = 1 / (1 / rates["loader_imgs_per_sec"] + 1 / rates["model_imgs_per_sec"])
    assert rates["of_shared_cores"] == pytest.approx(rates["end_to_end_imgs_per_sec"] / shared)
    assert 0 <= rates["data_wait_beside_sleep"] <= 1
    assert rates["backend"] in ("torch", "dali-gpu") and rates["reason"]
    assert (rates["arch"], rates["batch_size"], rates["shards"]) == ("resnet10", 8, "shards")
    assert [len(values) for values in rates["stretches"].values()] == [2, 2, 2, 2, 2]
    assert {"date", "commit", "cpu", "cores", "torch_threads", "packages"} <= set(rates["environment"])
    assert rates["differs_from_training"] == {
        "arch": ["resnet10", "resnet50"],
        "batch_size": [8, 256],
        "image_size": [32, 224],
    }
    remark = "not what fastmoco train uses by default: for that, add --arch resnet50 --batch-size 256 --image-size 224"
    assert remark in " ".join(shown.split())
    for word in ("loader", "model", "end to end", "bottleneck"):
        assert word in shown


@pytest.mark.long
def test_without_a_set_it_makes_one(command, tmp_path):
    command(sys.executable, SCRIPT, *SMALL, "--json", "rates.json")
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert rates["shards"].startswith("made") and rates["samples"] >= 256
    assert [p.name for p in tmp_path.iterdir()] == ["rates.json"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--shards", "nowhere"), "nowhere"),
        (("--batch-size", "97"), "--batch-size 97 is more than the 96 images"),
        (("--arch", "resnet9"), "resnet9"),
        (("--repeats", "0"), "--repeats"),
    ],
)
def test_impossible_measurements_end_in_one_line(in_process, shard_sets, tmp_path, wrong, says):
    (tmp_path / "shards").symlink_to(shard_sets / "train")
    result = in_process(SCRIPT, *wrong, check=False)
    assert result.returncode == 2
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.long
def test_a_set_in_an_object_store_is_read_by_its_url(command, shard_sets, s3, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("s3").put(f"{shard_sets / 'train'}/", f"{s3}/", recursive=True)
    command(sys.executable, SCRIPT, *SMALL, "--shards", s3, "--json", "rates.json")
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert rates["shards"] == s3 and rates["samples"] == 96 and rates["loader_imgs_per_sec"] > 0


def test_under_torchrun_ranks_are_compared_with_one_process_alone(torchrun, shard_sets, tmp_path):
    (tmp_path / "shards").symlink_to(shard_sets / "train")
    torchrun(2, SCRIPT, *SMALL, "--threads", 1, "--decoder-load", 0.5, "--json", "rates.json")
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert rates["ranks"] == 2 and rates["shards"] == "shards"
    for name in ("loader", "model", "end_to_end"):
        key = f"{name}_imgs_per_sec"
        assert rates[key] == pytest.approx(sum(rank[key] for rank in rates["each"]))
        assert rates[f"{name}_scaling"] == pytest.approx(rates[key] / (2 * rates["alone"][key]))
    assert [rates["alone"]["batch_size"], *(rank["batch_size"] for rank in rates["each"])] == [8, 8, 8]
