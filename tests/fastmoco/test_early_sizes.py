"""--early-sizes: what it accepts, and that a run which is continued equals one that was never interrupted."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastmoco
from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.config import ConfigError
from fastmoco.model.following import following_encoder
from fastmoco.recipes import recipe
from fastmoco.train import parse
from fastmoco.trainer.schedule import pixels, sizes_in_words, view_sizes
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import resnet10_of

EARLY = ("16@0.34", "24@0.8")
SMALL = {
    "recipe": "demo", "image_size": 32, "batch_size": 8, "queue_size": 16, "threads": 1, "log_every": 1, "steps": 6,
    "early_sizes": EARLY,
}  # fmt: skip
SCRIPT = Path(__file__).parent / "scripts" / "worlds.py"
SIDES = [16, 16, 24, 24, 32, 32]  # three steps are an epoch


class _Watch(fastmoco.Callback):
    """Stops after a step."""

    def __init__(self, last=None):
        self.last = last

    def on_step(self, training):
        if training.step == self.last:
            training.stop()


@pytest.fixture(scope="module", autouse=True)
def _narrow(one_thread):
    with resnet10_of(1 / 4):
        yield


@pytest.fixture(scope="module")
def whole(shard_sets, tmp_path_factory):
    return fastmoco.pretrain(shard_sets / "val", out=tmp_path_factory.mktemp("sizes") / "whole", **SMALL)


def final_state(folder):
    state = checkpoint.load(checkpoint.found(folder / "checkpoints")[0])
    return {name: value for name, value in state.items() if name not in ("config", "sha256")}  # which covers both


def assert_equal_states(ours, theirs):
    """Bit for bit, through nested containers."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict | list | tuple):
        assert len(ours) == len(theirs)
        for name in ours if isinstance(ours, dict) else range(len(ours)):
            assert_equal_states(ours[name], theirs[name])
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("last", [2, 3, *(pytest.param(step, marks=pytest.mark.long) for step in (1, 4))])
def test_a_run_that_is_continued_around_a_change_equals_an_undisturbed_one(whole, shard_sets, tmp_path, caplog, last):
    """Bit for bit: stopped at a change, and between two."""
    out = tmp_path / "run"
    fastmoco.pretrain(shard_sets / "val", out=out, callbacks=[_Watch(last)], **SMALL)
    caplog.set_level(logging.INFO)
    again = fastmoco.pretrain(shard_sets / "val", out=out, **SMALL)
    assert f"views of {SIDES[last]} pixels from step {last + 1} on" in caplog.text
    assert_equal_states(final_state(again.folder), final_state(whole.folder))
    assert [record["loss"] for record in again.metrics] == [record["loss"] for record in whole.metrics]


def test_the_sizes_are_logged_and_probes_have_the_last_one(shard_sets, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    val = shard_sets / "val"
    more = {"knn_every": 1000, "knn_val": val, "knn_train": val}
    run = fastmoco.pretrain(val, out=tmp_path / "run", **SMALL, **more)
    said = [line for line in caplog.messages if line.startswith("views of")]
    assert said == [
        "views of 16 pixels from step 1 on",
        "views of 16 pixels up to step 2, 24 pixels up to step 4, and 32 from there on",
        "views of 24 pixels from step 3 on",
        "views of 32 pixels from step 5 on",
    ]
    assert json.loads((run.folder / "config.json").read_text())["early_sizes"] == list(EARLY)
    with pytest.raises(CheckpointError, match=r"--early-sizes was \['16@0.34', '24@0.8'\], now \[\]"):
        fastmoco.pretrain(val, out=run.folder, **{**SMALL, **more, "early_sizes": ()})


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_change_together_and_continue(shard_sets, tmp_path, torchrun):
    flags = ["--recipe", "demo", "--image-size", 32, "--batch-size", 8, "--queue-size", 16, "--log-every", 1]
    flags += ["--threads", 1, "--shards", shard_sets / "val", "--early-sizes", *EARLY]
    flags += ["--steps", 6]
    for name, stops in (("whole", (6,)), ("stopped", (2, 6))):
        for last in stops:
            seen = tmp_path / f"{name}-{last}"
            seen.mkdir()
            env = {"RECORD": str(seen), "STOP_AFTER": str(last)}
            torchrun(2, SCRIPT, *flags, "--out", tmp_path / name, env=env)
    assert_equal_states(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))


def test_the_first_batch_of_each_size_follows_from_the_length():
    config = recipe("demo", early_sizes=("16@0.5", "24@0.75"))
    assert view_sizes(config, 1000) == [(0, 16), (500, 24), (750, 40)]
    assert view_sizes(config, 1) == [(0, 40)]  # no batch of the others
    assert view_sizes(recipe("demo"), 10) == [(0, 40)]
    said = sizes_in_words(config, 1000)
    assert said == "views of 16 pixels up to step 500, 24 pixels up to step 750, and 40 from there on"
    seen = pixels(config, 1000)
    assert seen is not None and pixels(recipe("demo"), 10) is None
    wanted = {0: 0, 500: 500 * 16**2, 600: 500 * 16**2 + 100 * 24**2, 1000: 500 * 16**2 + 250 * (24**2 + 40**2)}
    assert {step: seen(step) for step in wanted} == wanted
    short = sizes_in_words(config, 1)
    assert short == "views of 40 pixels from the first step on: the run is too short for those of --early-sizes"


@pytest.mark.parametrize(
    ("early", "message"),
    [
        (("32",), "--early-sizes 32 is no size with a share of the run; write 32@0.5"),
        (("big@0.5",), "--early-sizes big@0.5 is no size with a share of the run"),
        (("8@0.5",), "--early-sizes 8@0.5: the size must be at least 16, and below --image-size 224, which follows"),
        (("224@0.5",), "--early-sizes 224@0.5: the size must be at least 16, and below --image-size 224"),
        (("32@1",), "--early-sizes 32@1: the share of the run must be above 0 and below 1"),
        (("32@nan",), "--early-sizes 32@nan: the share of the run must be"),
        (("32@0.5", "64@0.5"), "--early-sizes 32@0.5 64@0.5: each must be above the one before it"),
        (("64@0.5", "32@0.6"), "--early-sizes 64@0.5 32@0.6: each must be above the one before it"),
    ],
)
def test_sizes_that_cannot_work_are_named(early, message):
    with pytest.raises(ConfigError, match=message):
        recipe("moco-v2", early_sizes=early)


def test_a_blur_that_a_size_is_too_small_for_and_graphs_are_refused(tmp_path):
    (tmp_path / "views.toml").write_text("blur = 1.0\nsigma = [0.1, 8.0]\n")
    with pytest.raises(ConfigError, match=r"--early-sizes 24@0.5: --views .*use 25 or more; or a smaller sigma"):
        recipe("moco-v2", early_sizes=("24@0.5",), views=tmp_path / "views.toml")
    with pytest.raises(ConfigError, match="--cuda-graphs does not work with --early-sizes: a graph has images of one"):
        recipe("moco-v2", early_sizes=("24@0.5",), cuda_graphs=True)


def test_encoders_of_one_size_are_refused():
    pytest.importorskip("timm")
    config = replace(recipe("moco-v2"), arch="timm:vit_tiny_patch16_224", early_sizes=("160@0.5",))
    with pytest.raises(ConfigError, match="does not fit --arch timm:vit_tiny_patch16_224, whose positions are fixed"):
        following_encoder(config, {})
    with pytest.raises(ConfigError, match="does not fit --arch timm:vit_tiny_patch16_224"):
        fastmoco.pretrain("no such set", recipe=config)  # before anything is read or written
    config = replace(config, arch="timm:test_convnext")
    assert following_encoder(config, {"image_size"}).early_sizes == ("160@0.5",)


@pytest.mark.long
def test_compiled_encoders_are_compiled_once_for_each_size(monkeypatch):
    """Traced alone: the default backend takes half a minute."""
    seen = []

    def backend(graph, inputs):
        seen.append([tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor) and each.ndim == 4][-1:])
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **more: compiled(module, backend=backend, **more))
    early = ("16@0.2", "18@0.3", "20@0.4", "22@0.5", "24@0.6")  # more than torch's limit of graphs is meant for
    config = recipe("demo", image_size=32, batch_size=4, queue_size=8, early_sizes=early, compile=True)
    step = TrainStep(config, torch.device("cpu"), 7)
    for number, side in enumerate((16, 16, 18, 20, 22, 24, 32, 32)):
        views = torch.randn(2, 4, 3, side, side)
        step(TwoViews(views[0], views[1], torch.arange(4)), number)
    assert len(seen) == 12  # two encoders, six sizes
    torch.compiler.reset()


def test_sizes_are_compared_with_those_of_an_encoder_of_timm(tmp_path):
    """Its own, of 288 pixels, where none is given."""
    pytest.importorskip("timm")
    arch = "timm:efficientnet_b3"
    assert parse(["--arch", arch, "--early-sizes", "256@0.5"]).image_size == 288
    with pytest.raises(ConfigError, match=r"--early-sizes 288@0.5: .* below --image-size 288, which follows"):
        parse(["--arch", arch, "--early-sizes", "288@0.5"])
    with pytest.raises(ConfigError, match=r"--early-sizes 256@0.5: .* below --image-size 224, which follows"):
        parse(["--arch", arch, "--early-sizes", "256@0.5", "--image-size", "224"])
    with pytest.raises(fastmoco.UserError) as error:  # the sizes fit, and the images are not there
        fastmoco.pretrain(tmp_path / "none", arch=arch, early_sizes=("256@0.5",), out=tmp_path / "run")
    assert str(tmp_path / "none") in str(error.value)
    with pytest.raises(ConfigError, match=r"--early-sizes 288@0.5: .* below --image-size 288, which follows"):
        fastmoco.pretrain(tmp_path / "none", arch=arch, early_sizes=("288@0.5",), out=tmp_path / "run")
