"""The small benchmarks of the data path: draws.py, embedding.py, order.py, startup.py, soak.py."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_draws_are_timed(command, tmp_path):
    command(sys.executable, FOLDER / "draws.py", "--repeats", "20", "--batch-size", "16", "--json", "rows.json")
    result = json.loads((tmp_path / "rows.json").read_text())
    assert [row["recipe"] for row in result["rows"]] == ["moco_v1", "moco_v2"]
    assert all(0 < row["median_ms"] <= row["ninth_decile_ms"] for row in result["rows"])
    assert {"date", "commit", "cpu", "packages"} <= set(result["environment"])


def test_orders_are_measured(command, tmp_path):
    small = ("--samples", "1000000", "--ranks", "16", "--per-class", "64")
    command(sys.executable, FOLDER / "order.py", *small, "--json", "rows.json")
    result = json.loads((tmp_path / "rows.json").read_text())
    assert [row["policy"] for row in result["cost"]] == ["global", "sharded", "sharded"]
    everywhere, *few = (row["shards_read_in_100_steps"] for row in result["cost"])
    assert everywhere == 500 and max(few) < 100
    assert all(row["batch_ms"] > 0 for row in result["cost"])
    for row in result["mixing"]:
        # of 250 batches: 249 × 999 degrees of freedom, so the standard deviation is 0.003
        assert abs(row["packed_global"] - 1) < 0.02
    assert result["mixing"][1]["sorted_by_class_global"] > 1.3
    assert {"date", "commit", "cpu", "packages"} <= set(result["environment"])


@pytest.mark.long
def test_the_start_is_measured(command, shard_sets, tmp_path):
    small = ("--records", "300", "--batch-size", "8", "--image-size", "32", "--repeats", "1")
    shards = ("--shards", shard_sets / "train")
    command(sys.executable, FOLDER / "startup.py", *shards, *small, "--json", "rows.json")
    result = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["order"], row["records"]) for row in result["rows"]] == [("global", 300), ("sharded", 300)]
    for row in result["rows"]:
        assert 0 < row["shards_read"] <= 8
        assert row["shards_read"] <= row["shards_opened"] <= 4 * 8
        assert 0 < row["open_seconds"] < row["together_seconds"]
    assert {"date", "commit", "cpu", "packages"} <= set(result["environment"])


@pytest.mark.long
def test_memory_is_watched_over_many_batches(command, tmp_path):
    small = ("--batches", "40", "--readings", "20", "--large", "1", "--json", "rows.json")
    command(sys.executable, FOLDER / "soak.py", *small)
    result = json.loads((tmp_path / "rows.json").read_text())
    assert len(result["readings_mb"]) == 20 and result["last_mb"] == pytest.approx(result["readings_mb"][-1], abs=0.01)
    assert {"date", "commit", "cpu", "packages"} <= set(result["environment"])


def test_a_leak_is_distinguished_from_steps(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    growth = importlib.import_module("soak").growth
    leak = 5.0 * np.arange(100) + np.random.default_rng(0).normal(0, 3, 100)
    slope, error = growth(leak, 0.1)  # 5 for each reading, of which there are 10 in a unit
    assert slope == pytest.approx(50, abs=3 * error) and slope > 10 * error
    flat = np.full(100, 7.0)
    flat[40:] += 100
    slope, error = growth(flat, 0.1)
    assert slope == pytest.approx(100 / 9.9) and slope <= error * 1.001
    assert growth(np.full(10, 7.0), 0.1) == (0, 0)


def test_the_watch_over_memory_fails_only_if_memory_grows_steadily(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    soak = importlib.import_module("soak")
    thousands = 0.1  # between two readings: 100 batches, as in 20,000 batches with 200 readings
    steps = np.zeros(100)
    steps[30:] += 300
    two_steps = steps.copy()
    two_steps[70:] += 300
    noise = np.random.default_rng(0).normal(0, 20, 100)
    made = {
        "flat": np.full(100, 7e5),
        "noisy": 7e5 + noise,
        "one step": 7e5 + steps,
        "two steps": 7e5 + two_steps,
        "within the limit": 7e5 + 0.9 * soak.LIMIT * thousands * np.arange(100),
        "growing": 7e5 + 1.1 * soak.LIMIT * thousands * np.arange(100),
        "growing, noisy": 7e5 + 6 * soak.LIMIT * thousands * np.arange(100) + noise,
    }
    found = {name: soak.verdict(*soak.growth(readings, thousands), 20_000) for name, readings in made.items()}
    assert [name for name, (_, code) in found.items() if code] == ["growing", "growing, noisy"]
    assert all(line.startswith("memory grows" if code else "memory does not grow") for line, code in found.values())
    line, code = soak.verdict(1e6, 0.0, 2 * soak.SETTLED - 1)  # a short run is still filling its buffers
    assert code == 0 and line.startswith("not judged")


def test_the_rate_of_features_is_compared_with_that_of_reading_and_of_the_encoder(in_process, shard_sets, tmp_path):
    small = ("--arch", "resnet10", "--image-size", 32, "--repeats", 1, "--part-size", 40, "--batch-size", 16)
    in_process(FOLDER / "embedding.py", "--shards", shard_sets / "train", *small, "--json", tmp_path / "rows.json")
    found = json.loads((tmp_path / "rows.json").read_text())
    row, rates = found["row"], found["rates"]
    assert row["images"] == 96 and {name: len(values) for name, values in rates.items()} == dict.fromkeys(rates, 1)
    slower = min(rates["loader"][0], rates["encoder"][0])
    assert row["efficiency"] == pytest.approx(rates["embed"][0] / slower, abs=1e-3)
    assert 0 < row["efficiency_of_one_after_the_other"] < 1


def test_an_index_is_compared_with_searching_all_features(in_process, tmp_path):
    pytest.importorskip("faiss")
    small = ("--images", 300, 3000, "--flat", 300, "--dim", 8, "--queries", 20, "--repeats", 1)
    in_process(FOLDER / "search_index.py", *small, "--json", tmp_path / "rows.json")
    flat, lists = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (flat["lists"], flat["recall_at_10"], lists["lists"]) == (0, 1.0, 256)
    assert lists["recall_of_the_set"] >= 0.95 and 0.8 < lists["recall_at_10"] <= 1
