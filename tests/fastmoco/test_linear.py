"""The linear probe against plain torch, several rates against one, stopped runs against whole ones."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastmoco.checkpoints import checkpoint
from fastmoco.config import ConfigError
from fastmoco.layouts.encoders import read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.probes.accuracy import hits
from fastmoco.probes.classifiers import Classifiers
from fastmoco.probes.encoders import digest_of, open_encoder
from fastmoco.probes.linear import FORMAT, LinearProbe
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.probes.sets import ProbeError
from fastmoco.ranks.world import World
from fastmoco.runs.errors import Stopped
from pipelines import LabelledCrops, PipelineOptions, ViewSpec
from tests.support.runs import metrics

SCRIPT = Path(__file__).parent / "scripts" / "probe.py"
CPU = World(0, 1, torch.device("cpu"))
RATES = (0.3, 3.0, 30.0)
pytestmark = pytest.mark.usefixtures("one_thread")
MODES = pytest.mark.parametrize("fast", [False, True], ids=["crops", "fast"])


def settings(shard_sets, out, **more):
    few = {"epochs": 5, "batch_size": 24, "image_size": 32, "arch": "resnet10", "threads": 1, "lr": RATES}
    where = {"train": shard_sets / "train", "val": shard_sets / "val", "out": out}
    return LinearSettings("untrained", **where | few | more)


def probe(chosen):
    """The probe after its run, its result, and its last checkpoint."""
    made = LinearProbe(chosen, open_encoder("untrained", "resnet10"), CPU)
    result = made.run()
    return made, result, checkpoint.load(checkpoint.found(chosen.out / "checkpoints")[0], FORMAT)


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_equal_ends(ours, theirs):
    """Two probes ended in the same state, bit for bit."""
    assert ours["probe"] == theirs["probe"]
    for name in ("progress", "heads", "optimiser"):
        assert_equal(ours[name], theirs[name])


@pytest.fixture(scope="module")
def whole(shard_sets, tmp_path_factory, one_thread):
    """An undisturbed probe of 5 epochs of 4 steps with three learning rates, in each mode."""
    folder = tmp_path_factory.mktemp("whole")
    return {fast: probe(settings(shard_sets, folder / str(fast), fast=fast)) for fast in (False, True)}


def plain_torch(chosen, rate):
    """The protocol with torch's own modules, loss and scheduler, on the same batches."""
    torch.manual_seed(0)
    encoder = open_encoder("untrained", "resnet10").encoder
    linear = nn.Linear(512, 4)
    first = torch.empty(4, 512).normal_(0, 0.01, generator=torch.Generator().manual_seed(chosen.seed))
    linear.weight.data.copy_(first)
    linear.bias.data.zero_()
    optimiser = torch.optim.SGD(linear.parameters(), rate, momentum=0.9, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 4], 0.1)  # 60 % and 80 % of 5 epochs
    from shards import ShardSet

    crops = LabelledCrops(
        ShardSet(chosen.train), ViewSpec.probe(32), global_batch=24, options=PipelineOptions(threads=1)
    )
    for epoch in range(5):
        for batch in crops.epoch(epoch):
            with torch.no_grad():
                features = encoder(batch.images)
            loss = nn.CrossEntropyLoss()(linear(features), batch.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    return linear


@pytest.mark.parametrize("place", [0, 2])
def test_the_weights_are_those_of_plain_torch(shard_sets, tmp_path, whole, place):
    linear = plain_torch(settings(shard_sets, tmp_path), RATES[place])
    ours = whole[False][0].classifiers.heads[place]
    assert linear.weight.abs().max() > 0.1
    assert (ours.weight - linear.weight).abs().max() <= 1e-4
    assert (ours.bias - linear.bias).abs().max() <= 1e-4


@MODES
def test_several_rates_in_one_pass_are_as_many_runs(shard_sets, tmp_path, whole, fast):
    together, result, _ = whole[fast]
    rows = []
    for place, rate in list(enumerate(RATES))[::2]:
        alone, one, _ = probe(settings(shard_sets, tmp_path / str(rate), lr=(rate,), fast=fast))
        assert_equal(alone.classifiers.heads[0].state_dict(), together.classifiers.heads[place].state_dict())
        rows += one["results"]
    assert rows == result["results"][::2]


@MODES
def test_it_learns_and_tells(whole, fast):
    made, result, state = whole[fast]
    assert max(row["linear_top1"] for row in result["results"]) > 40  # of 4 classes, from random features
    for row in result["results"]:
        assert 0 <= row["linear_top1"] <= row["linear_top5"] == 100
    records = metrics(made.settings.out)
    assert [r["step"] for r in records if "top1/lr30" in r] == [4, 8, 12, 16, 20]
    last = [r for r in records if "top1/lr30" in r][-1]
    assert [last[f"top1/lr{rate:g}"] for rate in RATES] == [row["linear_top1"] for row in result["results"]]
    assert [r["step"] for r in records if "loss/lr3" in r] == [4, 8, 12, 16, 20]
    assert state["probe"]["encoder"] == digest_of(made.frozen.encoder) == open_encoder("untrained", "resnet10").digest


class Killed(Exception):
    pass


def run_until(chosen, step):
    """Interrupt a probe right after a step, before it saves anything more."""

    class Cut(LinearProbe):
        def _log(self, *arguments):
            super()._log(*arguments)
            if self.step >= step:
                raise Killed

    with pytest.raises(Killed):
        Cut(chosen, open_encoder("untrained", "resnet10"), CPU).run()


@MODES
@pytest.mark.parametrize(("every", "cut_at"), [(0, 13), (3, 11)])
def test_a_probe_that_was_cut_off_continues_bit_for_bit(shard_sets, tmp_path, whole, fast, every, cut_at):
    chosen = settings(shard_sets, tmp_path, fast=fast, checkpoint_every=every, log_every=1)
    run_until(chosen, cut_at)
    newest = checkpoint.newest(tmp_path / "checkpoints", FORMAT)
    assert (newest[1]["progress"]["step"] if newest else 0) == cut_at - cut_at % (every or 4)
    _, result, state = probe(chosen)
    assert_equal_ends(state, whole[fast][2])
    assert result["results"] == whole[fast][1]["results"]
    assert [r["step"] for r in metrics(tmp_path) if "top1/lr30" in r] == [4, 8, 12, 16, 20]


@pytest.mark.dali
@MODES
def test_a_probe_by_dali_resumes_bit_for_bit_and_ends_near_one_by_torch(shard_sets, tmp_path, whole, fast):
    pytest.importorskip("nvidia.dali")
    chosen = settings(shard_sets, tmp_path / "whole", fast=fast, pipeline="dali")
    made, result, state = probe(chosen)
    assert (result["pipeline"], whole[fast][1]["pipeline"]) == ("dali-cpu", "torch")
    cut = settings(shard_sets, tmp_path / "cut", fast=fast, pipeline="dali", checkpoint_every=3, log_every=1)
    run_until(cut, 11)
    _, resumed, again = probe(cut)
    assert_equal_ends(again, state)
    assert resumed["results"] == result["results"]
    ours, theirs = (made.classifiers.heads[0].weight, whole[fast][0].classifiers.heads[0].weight)
    assert 0 < (ours - theirs).norm() < 0.02 * theirs.norm()  # pixels that differ by a level
    # the folder of one backend is continued with another, as in training
    assert probe(settings(shard_sets, made.settings.out, fast=fast))[1]["pipeline"] == "torch"


def test_a_finished_probe_reports_its_result_again_and_another_is_refused(shard_sets, whole):
    made, result, _ = whole[True]
    assert probe(made.settings)[1] == result
    for change, message in (
        ({"lr": (1.0,)}, r"lr was \[0.3, 3.0, 30.0\], now \[1.0\]"),
        ({"fast": False}, "fast was True, now False"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"train": shard_sets / "val", "batch_size": 24}, "train was "),
    ):
        with pytest.raises(checkpoint.CheckpointError, match=message):
            probe(settings(shard_sets, made.settings.out, **{"fast": True} | change))
    with pytest.raises(
        LayoutError, match=r"is a checkpoint of the format fastmoco-linear/1, which holds no pretrained"
    ):
        read_encoder(checkpoint.found(made.settings.out / "checkpoints")[0])


def test_sigterm_leaves_a_checkpoint_and_the_same_command_continues(shard_sets, tmp_path, whole, in_process):
    chosen = settings(shard_sets, tmp_path / "run", log_every=1)

    class Terminated(LinearProbe):
        def _log(self, *arguments):
            super()._log(*arguments)
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"stopped after step [23]; the same command continues from there"):
        Terminated(chosen, open_encoder("untrained", "resnet10"), CPU).run()
    names = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--out", tmp_path / "run")
    few = ("--epochs", 5, "--batch-size", 24, "--image-size", 32, "--arch", "resnet10", "--threads", 1)
    more = ("--lr", *RATES, "--json", tmp_path / "linear.json")
    done = in_process("-m", "fastmoco.linear", "--checkpoint", "untrained", *names, *few, *more)
    assert "continuing from" in done.stderr and "lr 30 (24 images, 4 classes)" in done.stdout
    assert json.loads((tmp_path / "linear.json").read_text()) == whole[False][1]


@pytest.mark.distributed
def test_two_ranks_get_the_result_of_one(shard_sets, tmp_path, whole, torchrun, in_process):
    torchrun(2, SCRIPT, shard_sets, tmp_path)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for mode, fast in (("crops", False), ("fast", True)):
        state = whole[fast][2]
        theirs = checkpoint.load(checkpoint.found(tmp_path / mode / "checkpoints")[0], FORMAT)
        assert theirs["probe"] == state["probe"]
        for name, value in theirs["heads"].items():
            scale = state["heads"][name].abs().max()
            assert (value - state["heads"][name]).abs().max() <= 1e-3 * scale, name
    # one process reads the features that two have cached, and finds the same neighbours as without the cache
    names = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--arch", "resnet10", "--image-size", 32)
    table = ("--checkpoint", "untrained", "--k", 1, 5, 20, "--temperature", 0.07, 0.2, "--json", tmp_path / "one.json")
    for cache in ((), ("--cache", tmp_path / "cache")):
        log = in_process("-m", "fastmoco.knn", *names, *table, *cache).stderr
        rows = json.loads((tmp_path / "one.json").read_text())["results"]
        assert [rows[place]["knn_top1"] for place in (0, 2, 5)] == first["knn"]
    assert "took 96 features from the cache" in log and "took 24 features" in log and "wrote" not in log


def test_a_rank_without_an_image_leaves_the_weights_unchanged():
    made = Classifiers(8, 3, [1.0], momentum=0.9, weight_decay=0.0, seed=0, device=torch.device("cpu"))
    before = made.heads[0].weight.clone()
    losses = made.step(torch.empty(0, 8), torch.empty(0, dtype=torch.int64), 1.0, 4)
    assert losses.tolist() == [0.0] and torch.equal(made.heads[0].weight, before)


def test_top5_counts_the_first_five():
    made = Classifiers(6, 6, [1.0], momentum=0.9, weight_decay=0.0, seed=0, device=torch.device("cpu"))
    made.heads[0].weight.data = torch.eye(6)
    features = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).expand(6, 6)
    assert hits(made.heads, features, torch.arange(6)).tolist() == [[1, 5]]


def test_an_encoder_that_changes_in_the_probe_is_an_error(shard_sets, tmp_path):
    class Forgetful(LinearProbe):
        def _evaluate(self, *arguments):
            self.frozen.encoder.train()  # as a bug that also trains BatchNorm
            super()._evaluate(*arguments)

    with pytest.raises(ProbeError, match="the encoder changed during the probe"):
        Forgetful(settings(shard_sets, tmp_path, epochs=2), open_encoder("untrained", "resnet10"), CPU).run()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lr": ()}, "--lr has no value"),
        ({"lr": (1.0, -3.0)}, "--lr is -3.0"),
        ({"lr": (1.0, 1.0)}, "twice"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"momentum": 1.0}, "--momentum is 1.0"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_impossible_settings_are_named(shard_sets, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        settings(shard_sets, tmp_path, **more)


def test_the_rate_falls_at_60_and_80_of_100_epochs():
    chosen = LinearSettings("x", "a", "b")
    assert (chosen.lr, chosen.epochs, chosen.batch_size, chosen.momentum, chosen.weight_decay) == (
        (30.0,),
        100,
        256,
        0.9,
        0,
    )
    np.testing.assert_allclose([chosen.factor(e) for e in (0, 59, 60, 79, 80, 99)], [1, 1, 0.1, 0.1, 0.01, 0.01])
