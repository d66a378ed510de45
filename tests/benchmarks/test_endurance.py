"""endurance.py: its store, and what it says of slices. The runs themselves are an hour's."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from shards import ShardSet

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_the_store_serves_a_set_and_is_away_or_refuses_when_told(shard_sets, monkeypatch):
    from _endurance.store import serving

    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "1")
    with serving(shard_sets / "train") as server, ShardSet(shard_sets / "train") as local:
        with ShardSet(server.url) as remote:
            assert remote.read(5) == local.read(5)
        server.away = True
        with pytest.raises(OSError, match="without response"):
            urllib.request.urlopen(f"{server.url}/manifest.json")
        server.away, server.every = False, 1
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{server.url}/manifest.json")
        assert server.refused == 2


def slices(rate=100.0, memory=0.0, files=0.0, disturbed=None):
    """Forty slices of each run; one process each, that grows by `memory` kB and by `files` open files a minute."""
    from _endurance.turns import Slice

    for number in range(80):
        ours, minute = number % 2, number / 4  # each slice is half a minute of its run's training
        fault = "pause" if ours and number % 8 == 7 else ""
        speed = (rate if ours else 100.0) + (number // 2 % 3 - 1) - 50 * bool(fault)
        size, opened = (memory * minute * 1000, files * minute) if ours else (0.0, 0.0)
        noise = number // 2 * 7 % 5 * 1000
        yield Slice(
            ("undisturbed", "with faults")[ours], fault, 30.0, round(30 * speed),
            {ours + 1: int(5e8 + size + noise)}, {ours + 1: int(40 + opened)},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({}, 0, "inside of two deviations"),
        ({"rate": 99.0}, 0, "99.0 images/s between faults"),
        ({"rate": 95.0}, 1, "outside of two deviations of the undisturbed run, 100.0 ± 0.8"),
        ({"memory": 40.0}, 1, "with faults: memory (kB) grows"),
        ({"memory": 5.0}, 0, "with faults: memory (kB) does not grow"),
        ({"files": 2.0}, 1, "with faults: number of open files grows"),
    ],
)
def test_what_differs_is_named(change, code, says):
    from _endurance.verdict import judged, summary

    lines, found = judged(summary(list(slices(**change))) | {"differences": []})
    assert found == code and any(says in line for line in lines), lines


def test_unequal_results_are_a_failure_however_short_the_run():
    from _endurance.verdict import judged, summary

    lines, code = judged(summary(list(slices())[:8]) | {"differences": ["checkpoint: queue.queue_KD"]})
    assert code == 1 and lines[-1].startswith("speed and growth are not judged")
