"""Faults at random moments: the smallest slice of `python -m tests.endurance`, and what that compares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from fastmoco.checkpoints import checkpoint
from tests.endurance.plan import KINDS, Case, case
from tests.support.faulty import Faults, FaultyServer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture
def made(monkeypatch):
    """The module that compares runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _endurance import made

    return made


def test_a_case_follows_from_seed_and_number_and_all_kinds_come():
    cases = [case(0, number) for number in range(5 * len(KINDS))]
    assert cases == [case(0, number) for number in range(5 * len(KINDS))] != [case(1, n) for n in range(5 * len(KINDS))]
    for first in range(0, len(cases), len(KINDS)):
        assert sorted(one.kind for one in cases[first : first + len(KINDS)]) == sorted(KINDS)
    assert {one.ranks for one in cases} == {2, 3} and {one.rendezvous for one in cases} == {"static", "c10d"}
    assert min(one.share for one in cases) < 0.1 and max(one.share for one in cases) > 0.9
    stops = {one.target.split()[0] for one in cases if one.kind in ("term", "usr1", "int")}
    assert stops == {"agent", "rank", "ranks", "all"}
    assert all(5 <= one.seconds <= 60 for one in cases if one.kind == "outage")


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(made, shard_sets, tmp_path, command):
    """The cheapest kind, without torchrun; the undisturbed run starts warm."""
    from tests.endurance.running import Place, Undisturbed, endure

    (tmp_path / "set").symlink_to(shard_sets / "train")
    place = Place(tmp_path, FaultyServer(Faults()), steps=24)
    whole = tmp_path / "whole"
    python, _, _, *flags = place.line(whole, 1, "", tmp_path / "set")
    command(python, TINY, *flags)
    place.undisturbed[1] = Undisturbed(whole, 24, first=0.0, seconds=1.0)  # so the moment is a step: the 11th
    told = endure(Case(0, "kill-all", 1, "", share=0.4, target="all"), place)
    step, starts = re.fullmatch(r"at [\d.]+ s, step (\d+); (\d) starts, \d+ s", told).groups()
    assert 11 <= int(step) < 24 and starts == "2"


def run_of(folder: Path, queue: float = 1.0, speed: float = 1.0, steps: tuple[int, ...] = (1, 2)) -> Path:
    """A run folder with a checkpoint of one tensor, and records of some steps."""
    state = {"config": {"out": str(folder)}, "progress": {"step": 2}, "queue": {"queue_KD": torch.tensor([queue])}}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"format": checkpoint.FORMAT, **state}, folder / "checkpoints" / "step-00000002.pt")
    records = [{"step": step, "loss": 0.5, "imgs_per_sec": speed, "data_wait": speed} for step in steps]
    lines = [json.dumps(record) + "\n" for record in [*records, {"step": 2, "warning": "slow", "message": "slow"}]]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_runs_that_differ_are_found(made, tmp_path):
    whole = run_of(tmp_path / "whole")
    assert made.differences(run_of(tmp_path / "same", speed=2.0), whole) == []
    (bits,) = made.differences(run_of(tmp_path / "bits", queue=1.0000001), whole)
    assert bits == "checkpoint: queue.queue_KD"
    (short, *_) = made.differences(run_of(tmp_path / "short", steps=(1,)), whole)
    assert short.startswith("metrics: 1 records instead of 2; steps without theirs [2]")
    (twice, *_) = made.differences(run_of(tmp_path / "twice", steps=(1, 1, 2)), whole)
    assert twice.startswith("metrics: 3 records instead of 2")
    replaced = run_of(tmp_path / "replaced")
    (replaced / "quarantine.jsonl").write_text('{"key": "a"}\n')
    assert made.differences(replaced, whole) == ['good images were replaced: {"key": "a"}']
