"""`fastmoco train --dry-run`: one line per check, faults last with their remedies; nothing is trained or left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from fastmoco.doctor import needs
from fastmoco.doctor.dry_run import _of_ranks, dry_run
from fastmoco.doctor.findings import Finding
from fastmoco.doctor.step_memory import StepMemory, step_memory
from fastmoco.model import encoders
from fastmoco.recipes import recipe
from fastmoco.trainer.callbacks import Callback
from fastmoco.trainer.loop import train
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from shards import ShardSet
from tests.fastmoco.test_train import flags
from tests.support.runs import narrow_resnet10

DRY = ("--arch", "resnet10", "--steps", "20", "--dry-run")


def test_a_sound_training_is_described_and_nothing_is_left(shard_sets, tmp_path, in_process):
    probe = ["--knn-every", "1", "--knn-val", shard_sets / "val"]
    done = in_process("-m", "fastmoco.train", *flags(shard_sets, tmp_path / "runs/run", *probe, *DRY))
    topics = [line.split()[1] for line in done.stdout.splitlines()[:-1]]
    assert topics == ["steps", "run", "kNN", "checkpoint", "memory", "disk", "data", "time"]
    for said in (
        "6 of 16 images an epoch, 20 in all; 1 rank of 16 images",
        "96 images in 3 shards; the index and an image of some of them can be read",
        "none: a new run begins", "24 images in", "run some steps with this --out", "training can run\n",
    ):  # fmt: skip
        assert said in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_faults_are_named_last_with_their_remedies(shard_sets, tmp_path, in_process):
    sets = tmp_path / "sets"
    shutil.copytree(shard_sets / "train", sets / "train")
    (tar,) = sets.glob("train/*1.tar")
    content = bytearray(tar.read_bytes())
    content[600:900] = bytes(300)
    tar.write_bytes(content)
    done = in_process("-m", "fastmoco.train", *flags(sets, tmp_path / "run", "--bn-splits", "3", *DRY), check=False)
    assert done.returncode == 2
    *_, steps, data, summary = done.stdout.splitlines()
    assert steps.startswith(
        "STOP  images        --batch-size 16 is not divisible by 1 rank × 3 BN splits; use 15 or 18"
    )
    assert data.startswith("STOP  data ") and "shard-000001.tar" in data
    assert summary == "training cannot run: see images, data" and not (tmp_path / "run").exists()


def test_an_image_that_cannot_be_decoded_is_named(shard_sets, tmp_path, in_process, monkeypatch):
    check = ShardSet.check
    # of 97 bytes, with the right checksum
    monkeypatch.setattr(ShardSet, "check", lambda shards, sample: check(shards, sample)[:97])
    done = in_process("-m", "fastmoco.train", *flags(shard_sets, tmp_path / "run", *DRY), check=False)
    assert done.returncode == 2
    assert "STOP  data          sample 0 (shard-000000.tar, key 000000000000): it cannot be decoded" in done.stdout


@pytest.mark.parametrize(
    ("early", "rates", "said"),
    [
        ((), (80, 80, 20, 20), "about 2 min 24 s for 900 steps at 50 images/s"),
        # at 80 images/s of 20 pixels and 20 images/s of 40, as many pixels a second
        (("20@0.08",), (80, 80, 20, 20), "about 6 min 00 s for 900 steps at 50 images/s"),
        # 450 steps at 10 a second, and 450 at 2.5
        (("20@0.55",), (80, 80, 80, 80), "about 3 min 45 s for 900 steps at 80 images/s"),
    ],
)  # fmt: skip
def test_the_time_left_counts_later_and_larger_views(tmp_path, early, rates, said):
    config = recipe("demo", batch_size=8, out=tmp_path, early_sizes=early)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    rows = zip((1, 50, 60, 90, 100), (1, *rates), strict=True)  # the first one includes the start-up
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(json.dumps({"step": step, "imgs_per_sec": rate}) for step, rate in rows)
    )
    assert needs.time(config, 1000).text == f"{said}, as {tmp_path} recorded"


@pytest.mark.distributed
def test_each_rank_reads_the_data(shard_sets, tmp_path, torchrun):
    arguments = flags(shard_sets, tmp_path / "run", "--batch-size", "18", *DRY)
    done = torchrun(2, "-m", "fastmoco.train", *arguments)
    assert "2 ranks of 9 images" in done.stdout and "can be read (the same on all 2 ranks)" in done.stdout


def test_a_rank_that_cannot_read_the_data_is_named_with_its_host():
    fine, fault = Finding("data", "can be read"), Finding("data", "/data: Permission denied", "stop")
    found = list(_of_ranks([("node0", [fine]), ("node1", [fault])]))
    assert [(each.text, each.level) for each in found] == [
        ("rank 0 on node0: can be read", "ok"), ("rank 1 on node1: /data: Permission denied", "stop")
    ]  # fmt: skip


def test_the_memory_is_that_of_a_real_step(monkeypatch):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 4))
    config = recipe("demo")
    needed = step_memory(config, 8, 100, None)
    step = TrainStep(config, torch.device("cpu"), 10)
    views = torch.randn(2, 8, 3, config.image_size, config.image_size)
    step(TwoViews(views[0], views[1], torch.arange(8)), 0)
    state = step.state()
    weights = [*state["query_encoder"].values(), *state["key_encoder"].values()]
    momentum = [each["momentum_buffer"] for each in state["optimiser"]["state"].values()]

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    assert needed.weights == size(weights) and needed.momentum == needed.gradients == size(momentum)
    assert needed.dictionary == size(step.model.dictionary.buffers())
    # twice the images are twice the activations
    twice = step_memory(config, 16, 100, None)
    assert twice.activations == pytest.approx(2 * needed.activations, rel=0.01)
    assert needed.views == 2 * views[0].numel() * 4 < needed.activations
    # in micro-batches, each has its share of them, and the views are there from the start
    parts = step_memory(replace(config, batch_size=16, accumulate=4), 16, 100, None)
    assert parts.activations == pytest.approx(twice.activations / 4, rel=0.01)
    assert parts.views == twice.views and parts.total < twice.total


def test_what_does_not_fit_is_told_how_many_micro_batches_would(monkeypatch):
    config = replace(recipe("demo"), batch_size=96)
    needed = StepMemory(weights=100, gradients=50, momentum=50, dictionary=100, views=100, activations=6000)
    for room, level, remedy in (
        (8000, "ok", ""),
        (6500, "warn", "give --accumulate 2, or a smaller --batch-size, if it does not fit"),
        (1800, "stop", "give --accumulate 6, a smaller --batch-size, or more ranks"),
        (450, "stop", "give a smaller --batch-size, or more ranks"),
    ):
        monkeypatch.setattr(needs, "memory_left", lambda room=room: (0, room))
        found = needs.memory(needed, config, 1)
        assert (found.level, found.remedy) == (level, remedy)
    monkeypatch.setattr(needs, "memory_left", lambda: (0, 6500))
    found = needs.memory(replace(needed, weights=6000, activations=50), config, 1)  # too little of it are activations
    assert (found.level, found.remedy) == ("warn", "give a smaller --batch-size, if it does not fit")


def test_of_a_symmetric_loss_micro_batches_hold_one_view_at_a_time(monkeypatch):
    config = replace(recipe("moco-v3-r50"), arch="resnet10", head_width=32, batch_size=16, image_size=32, bn_splits=1)
    config = replace(config, batch_norm="shuffle")
    whole, halves = (step_memory(replace(config, accumulate=parts), 16, 100, None) for parts in (1, 2))
    assert halves.activations == pytest.approx(whole.activations / 4, rel=0.05)
    monkeypatch.setattr(needs, "memory_left", lambda: (0, int(halves.total / 0.8) + 1))
    assert needs.memory(whole, config, 1).remedy.startswith("give --accumulate 2, ")
    # one image of each rank is enough where BatchNorm's groups span several ranks
    monkeypatch.setattr(needs, "memory_left", lambda: (0, 850))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    needed = StepMemory(weights=100, gradients=50, momentum=50, dictionary=100, views=100, activations=6000)
    for ranks, remedy in ((1, "give a smaller --batch-size"), (2, "give --accumulate 16, a smaller --batch-size")):
        asked = replace(config, batch_size=16 * ranks, batch_norm="sync")
        assert needs.memory(needed, asked, ranks).remedy.startswith(remedy)


@pytest.mark.parametrize("norm", ["sync", "plain"])
def test_a_single_image_in_a_micro_batch_is_counted_as_half_of_two(norm):
    config = replace(recipe("moco-v3-r50"), arch="resnet10", head_width=32, batch_size=4, image_size=32)
    one, two = (step_memory(replace(config, batch_norm=norm, accumulate=parts), 4, 100, None) for parts in (4, 2))
    assert one.activations == two.activations // 2 and one.views == two.views and one.weights == two.weights


@pytest.fixture
def tiny(shard_sets, tmp_path, monkeypatch):
    """Settings of a training of four steps of a narrow encoder, in a folder of its own."""
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))
    monkeypatch.chdir(tmp_path)
    small = {"image_size": 32, "batch_size": 16, "queue_size": 40, "threads": 1, "steps": 4}
    return recipe("demo", arch="resnet10", shards=shard_sets / "train", **small)


def found_by(config):
    return {each.topic: each for each in dry_run(config)}


class StopAt(Callback):
    """Ends a run after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, training):
        if training.step == self.step:
            training.stop()


def test_it_names_the_run_that_the_command_would_continue(tiny):
    run = train(tiny, callbacks=[StopAt(2)])
    found = found_by(tiny)
    assert found["checkpoint"].text == f"continues from {run}/checkpoints/step-00000002.pt: 2 steps are done"
    assert found["run folder"].text == f"{run} can be written, and no other process writes to it"
    assert found_by(replace(tiny, resume="none"))["checkpoint"].text == "none: a new run begins"
    train(tiny)
    ended = f"{run}/checkpoints/step-00000004.pt is that of a finished run: 4 of 4 steps are done"
    same = found_by(tiny)["checkpoint"]
    assert (same.text, same.level, same.remedy) == (ended, "note", "for a new run, give --resume none")
    other = found_by(replace(tiny, out=run, lr=0.5))["checkpoint"]
    assert (other.text, other.level) == (f"{ended}, with other settings: --lr was not given, now 0.5", "stop")
    assert other.remedy == "for a new run, give another --out"


def test_it_looks_at_the_copy(tiny, tmp_path):
    copied = replace(tiny, out=tmp_path / "run", checkpoint_copy=str(tmp_path / "copy"))
    assert found_by(copied)["checkpoint"].text == "none: a new run begins"
    train(copied)
    shutil.rmtree(tmp_path / "run")  # the machine is lost
    newest = tmp_path / "copy/checkpoints/step-00000004.pt"
    assert found_by(copied)["checkpoint"].text.startswith(f"continues from {newest}; whether it fits is seen")
    refused = found_by(replace(copied, resume="none"))["checkpoint"]
    assert refused.level == "stop" and "--resume none, but --checkpoint-copy" in refused.text
    assert not (tmp_path / "run").exists()


def test_settings_that_this_machine_or_the_encoder_does_not_allow_are_faults(tiny, shard_sets, monkeypatch):
    monkeypatch.setattr("fastmoco.runs.wandb_board.find_spec", lambda name: None)
    monkeypatch.setattr("pipelines.choice.installed", lambda: False)
    probe = {"knn_every": 1, "knn_val": shard_sets / "val", "knn_k": 97}
    convnext = {"arch": "timm:convnext_atto", "batch_norm": "sync"}
    for change, topic, said in (
        ({"wandb": "project"}, "settings", "--wandb project needs the package wandb"),
        ({"pipeline": "dali"}, "data", "needs NVIDIA DALI, which is not installed"),
        (probe, "kNN probe", "--knn-k is 97, more than the 96 labelled images of"),
        (convnext, "settings", "--batch-norm sync: --arch timm:convnext_atto with --head mlp has no BatchNorm"),
    ):
        found = found_by(replace(tiny, **change))[topic]
        assert found.level == "stop" and said in found.text


def test_the_checkpoints_of_epochs_take_room_also_where_the_length_is_in_steps(tmp_path):
    config = recipe("demo", out=tmp_path, keep_checkpoints=2, keep_every=3, steps=100)
    assert "(up to 5 are kept" in needs.disk(config, 1000, epochs=10).text
