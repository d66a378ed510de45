"""Figures that are read after the next step, as on a GPU: the same records, stops and checkpoints."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from fastmoco.checkpoints import checkpoint
from fastmoco.runs.errors import Stopped
from fastmoco.runs.signals import agree_on_stop
from fastmoco.train import parse
from fastmoco.trainer.callbacks import Callback
from fastmoco.trainer.loop import train
from fastmoco.trainer.monitor import KnnMonitor
from tests.support.runs import metrics

SCRIPT = Path(__file__).parent / "scripts" / "deferred.py"
SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--threads", "1"]
TIMES = ("imgs_per_sec", "data_wait")


def flags(shard_sets, run, *more):
    return [*SMALL, "--shards", shard_sets / "train", "--out", run, *more]


def records(run):
    """The run's records without what depends on the clock."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in metrics(run)]


def opened(ended):
    return json.loads(ended.stdout.replace("(", "[").replace(")", "]"))


@pytest.fixture(scope="module")
def probes(shard_sets):
    return ["--knn-every", "1", "--knn-val", shard_sets / "val"]


@pytest.mark.parametrize(
    "more",
    [["--log-every", "3"], pytest.param(["--log-every", "2", "--checkpoint-every", "4"], marks=pytest.mark.long)],
)
def test_the_records_are_those_of_immediate_reading(shard_sets, probes, tmp_path, in_process, more):
    arguments = ["--steps", "11", *probes, *more]
    in_process("-m", "fastmoco.train", *flags(shard_sets, tmp_path / "now", *arguments))
    later = in_process(SCRIPT, *flags(shard_sets, tmp_path / "later", *arguments))
    assert records(tmp_path / "later") == records(tmp_path / "now")
    assert list(metrics(tmp_path / "later")[1]) == list(metrics(tmp_path / "now")[1])
    # an epoch has six steps: figures of the steps 6 and 11 are read at once, before the probe, and of 4 and 8 before
    # the checkpoint
    late = [1, 3, 9] if "3" in more else [1, 2, 10]
    assert opened(later) == [[step, step + 1] for step in late]


@pytest.mark.distributed
def test_ranks_log_stop_and_continue_together(shard_sets, tmp_path, torchrun):
    arguments = ["--steps", "10", "--log-every", "3"]
    torchrun(2, "-m", "fastmoco.train", *flags(shard_sets, tmp_path / "now", *arguments))
    stopped = torchrun(2, SCRIPT, *flags(shard_sets, tmp_path / "later", *arguments), env={"STOP_AT": "5"}, check=False)
    assert "SIGTERM: stopped after step 5; the same command continues from there" in stopped.stderr
    torchrun(2, SCRIPT, *flags(shard_sets, tmp_path / "later", *arguments))
    assert records(tmp_path / "later") == records(tmp_path / "now")


@pytest.mark.parametrize("stop_at", [5, 6])
def test_one_process_stops_with_its_figures_logged(shard_sets, tmp_path, command, stop_at):
    arguments = flags(shard_sets, tmp_path, "--steps", "10", "--log-every", "6")
    ended = command(sys.executable, SCRIPT, *arguments, env={"STOP_AT": str(stop_at)}, check=False)
    assert f"SIGTERM: stopped after step {stop_at}; the same command" in ended.stderr and ended.returncode == 143
    assert checkpoint.found(tmp_path / "checkpoints")[0].name == f"step-{stop_at:08d}.pt"
    assert [record["step"] for record in records(tmp_path)] == ([1] if stop_at == 5 else [1, 6])


@pytest.mark.parametrize("every", [[], ["--checkpoint-every", "1"]])
def test_a_loss_that_is_not_finite_ends_the_run_before_a_checkpoint(
    shard_sets, tmp_path, in_process, monkeypatch, every
):
    monkeypatch.setenv("SPOIL_AT", "2")
    arguments = flags(shard_sets, tmp_path, "--steps", "12", "--log-every", "4", *every)
    ended = in_process(SCRIPT, *arguments, check=False)
    assert "the loss is nan (query_encoder" in ended.stderr and ended.returncode == 1
    said = f"the last sound checkpoint is {tmp_path}/checkpoints/step-00000001.pt" if every else "there is no sound"
    assert f"infinite or not a number) at step 4; {said}" in ended.stderr
    assert [path.name for path in checkpoint.found(tmp_path / "checkpoints")] == ["step-00000001.pt"] * len(every[:1])


def test_a_stop_during_a_probe_leaves_it_to_the_continued_run(shard_sets, probes, tmp_path, in_process):
    class Stop(Callback):
        def on_log(self, training, figures):
            if figures["step"] == 6 and "loss" in figures:  # the probe comes next
                os.kill(os.getpid(), signal.SIGTERM)

    def flags_of(run):
        return flags(shard_sets, run, "--steps", "6", "--log-every", "6", *probes)

    in_process("-m", "fastmoco.train", *flags_of(tmp_path / "whole"))
    with pytest.raises(Stopped, match="SIGTERM: stopped after step 6;"):
        train(parse([str(each) for each in flags_of(tmp_path / "run")]), callbacks=[Stop()])
    assert [record["step"] for record in records(tmp_path / "run") if "knn_top1" in record] == [0]
    for _ in range(2):  # the second time nothing is left to be done
        in_process("-m", "fastmoco.train", *flags_of(tmp_path / "run"))
        assert records(tmp_path / "run") == records(tmp_path / "whole")
    # the probe of the last step, which was still to come when that was done, is not
    assert json.loads((tmp_path / "whole/status.json").read_text())["time_left_seconds"] == 0


def test_callbacks_are_told_of_an_end_during_the_first_probe(shard_sets, probes, tmp_path, monkeypatch):
    class Ending(Callback):
        ended = None

        def on_end(self, training):
            self.ended = training.step

    def probe(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        agree_on_stop()

    monkeypatch.setattr(KnnMonitor, "_probe", probe)
    ending = Ending()
    with pytest.raises(Stopped, match="SIGTERM: stopped after step 0;"):
        train(parse([str(each) for each in flags(shard_sets, tmp_path, "--steps", "6", *probes)]), callbacks=[ending])
    assert ending.ended == 0
