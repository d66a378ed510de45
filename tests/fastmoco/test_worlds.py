"""The number of ranks may change within an epoch. More changes by FASTMOCO_WORLDS=4,2,3,1."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fastmoco.runs.signals import AGENTS_APART, StopRequest
from pipelines import EpochOrder
from tests.support.runs import metrics

SCRIPT = Path(__file__).parent / "scripts" / "worlds.py"
WORLDS = [int(ranks) for ranks in os.environ.get("FASTMOCO_WORLDS", "2,1").split(",")]
BATCH, STEPS = 12, 8  # of the 96 samples


@pytest.mark.distributed
def test_each_id_of_an_epoch_is_seen_once_at_any_change_of_the_number_of_ranks(shard_sets, tmp_path, torchrun):
    seen, run = tmp_path / "seen", tmp_path / "run"
    seen.mkdir()
    settings = ["--recipe", "demo", "--image-size", 32, "--batch-size", BATCH, "--queue-size", 40, "--log-every", 1]
    flags = [*settings, "--shards", shard_sets / "train", "--out", run, "--threads", 1, "--steps", STEPS]
    for number, ranks in enumerate(WORLDS, start=1):
        stop_after = STEPS * number // len(WORLDS)
        torchrun(ranks, SCRIPT, *flags, env={"RECORD": str(seen), "STOP_AFTER": str(stop_after)})
        steps = sorted({int(file.name.partition("-")[0]) for file in seen.iterdir()})
        assert steps == list(range(stop_after))
    ids = []
    for step, expected in enumerate(EpochOrder(96, BATCH).ids(step).tolist() for step in range(STEPS)):
        files = sorted(seen.glob(f"{step}-*"))
        assert len(files) == WORLDS[step * len(WORLDS) // STEPS]
        of_step = [int(word) for file in files for word in file.read_text().split()]
        assert of_step == expected
        ids += of_step
    assert sorted(ids) == list(range(96))
    assert [record["step"] for record in metrics(run) if "loss" in record] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("agents", "asked_after", "waits"), [(1, 1.0, 0.0), (2, 1.0, 1.0), (2, 60.0, AGENTS_APART)])
def test_a_rank_that_others_stop_lets_its_own_agent_stop_it(monkeypatch, agents, asked_after, waits):
    """Else it would be finished for an agent that has not noticed the node yet for which another stopped its ranks."""
    request, now = StopRequest(), 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds
        if now >= asked_after:
            request.ask(signal.SIGTERM)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setenv("GROUP_WORLD_SIZE", str(agents))
    request.await_agent()
    assert now == pytest.approx(waits, abs=0.1)
