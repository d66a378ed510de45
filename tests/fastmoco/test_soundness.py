"""A state that is not finite is never saved, and a run ends or goes back to the last sound checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.finite import first_not_finite
from fastmoco.devices import to_host
from fastmoco.model import encoders
from fastmoco.model.moco import Contrast
from fastmoco.runs.errors import TrainingError
from fastmoco.train import parse
from fastmoco.trainer import rollback
from fastmoco.trainer.loop import train
from fastmoco.trainer.rollback import Rollback
from fastmoco.trainer.soundness import fault
from fastmoco.trainer.window import Window
from tests.support.runs import metrics, narrow_resnet10

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--threads", "1"]
NAN = float("nan")
SPOILT = {
    "query_encoder.backbone.conv1.weight": lambda step: next(step.model.encoder.parameters()),
    "key_encoder.backbone.conv1.weight": lambda step: next(step.model.parts()["key_encoder"].parameters()),
    "queue.queue_KD": lambda step: step.model.dictionary.queue_KD,
    "query_encoder.backbone.bn1.running_var": lambda step: step.model.encoder.backbone.bn1.running_var,
    "key_encoder.backbone.bn1.running_mean": lambda step: step.model.parts()["key_encoder"].backbone.bn1.running_mean,
    "optimiser.state.0.momentum_buffer": lambda step: next(iter(step.optimiser.state.values()))["momentum_buffer"],
}


class Spoiler:
    """Makes a value NaN after given numbers of steps, each once, and records the ids of all batches."""

    def __init__(self, name: str, *after: int) -> None:
        self.tensor, self.after, self.ids = SPOILT[name], list(after), []

    def __call__(self, train_step, batch, contrast, step) -> None:
        self.ids.append(sorted(batch.ids.tolist()))
        if step + 1 in self.after:
            self.after.remove(step + 1)
            with torch.no_grad():
                tensor = self.tensor(train_step)
                tensor[(0,) * tensor.dim()] = NAN


@pytest.fixture
def trained(shard_sets, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Trains a small encoder; epochs have six steps."""
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))

    def run(on_step, *flags, name="run", callbacks=()):
        arguments = [*SMALL, "--shards", shard_sets / "train", "--out", tmp_path / name, *flags]
        return train(parse([str(argument) for argument in arguments]), on_step, callbacks)

    return run


@pytest.mark.parametrize("name", SPOILT)
def test_one_value_that_is_not_finite_is_never_saved_and_ends_the_run(trained, tmp_path, name):
    with pytest.raises(TrainingError) as ended:
        trained(Spoiler(name, 3), "--steps", 8, "--log-every", 4, "--checkpoint-every", 1, "--keep-checkpoints", 1)
    sound = tmp_path / "run/checkpoints/step-00000002.pt"
    assert checkpoint.found(sound.parent) == [sound] and first_not_finite(checkpoint.load(sound)) is None
    assert f"at step 4; the last sound checkpoint is {sound} (step 2): continue from it with" in str(ended.value)
    (warning,) = (record for record in metrics(tmp_path / "run") if "warning" in record)
    assert warning["message"] == f"{name} is infinite or not a number after step 3, which is therefore not saved"


@pytest.mark.parametrize(
    ("scaled", "losses", "norms", "scale", "cause"),
    [
        (False, (2.0, 3.0), (1.0, 2.0), 1.0, None),
        (False, (math.inf, 3.0), (1.0, 2.0), 1.0, "the loss is inf"),  # of one step between two lines
        (False, (2.0, 3.0), (math.nan, 2.0), 1.0, "the gradient is infinite or not a number"),
        # fp16 skips steps whose gradient overflows, at the start 16 of them and more
        (True, (2.0, 3.0), (math.inf, math.nan), 0.5, None),
        (
            True,
            (2.0, 3.0),
            (math.inf, 1.0),
            2.0**-11,
            "fp16's gradients overflow again and again: their scale is 0.00049",
        ),
        (True, (2.0, 3.0), (math.inf, 1.0), math.nan, "fp16's gradients overflow again and again: their scale is nan"),
    ],
)
def test_what_is_a_fault(scaled, losses, norms, scale, cause):
    window = Window(torch.device("cpu"))
    for loss, norm in zip(losses, norms, strict=True):
        of_step = torch.tensor([loss, 0.5, 1.0, norm]).unbind()
        window.add(Contrast(*of_step), waited=0.0)
    # a checkpoint between the lines holds the sums
    assert (first_not_finite(window.state()) is None) is math.isfinite(losses[0])
    also = {"spoilt": torch.tensor(0), "scale": torch.tensor(scale)}
    figures = window.start_reading(1, torch.tensor(1.0), to_host, also)()
    finite = [norm for norm in norms if math.isfinite(norm)]
    assert figures["grad_norm"] == pytest.approx(sum(finite) / max(1, len(finite)))
    assert (fault(figures, scaled) or "None").startswith(str(cause))


def test_a_checkpoint_that_is_not_finite_is_not_continued_from(trained, tmp_path, caplog):
    run = trained(None, "--steps", 3, "--checkpoint-every", 1)
    newest = run / "checkpoints/step-00000003.pt"  # as an earlier version could write it
    state = {name: part for name, part in checkpoint.load(newest).items() if name != "sha256"}
    state["queue"]["queue_KD"][7, 7] = NAN
    torch.save(state, newest)
    caplog.set_level("INFO")
    trained(None, "--steps", 4, "--checkpoint-every", 1)
    assert f"{newest} is not sound: queue.queue_KD is infinite or not a number; the one before" in caplog.text
    assert "2 of 4 steps are done" in caplog.text and first_not_finite(checkpoint.load(newest)) is None


FLAGS = ("--steps", 11, "--log-every", 2, "--checkpoint-every", 4, "--on-nan", "rollback")
MOMENTUM = "optimiser.state.0.momentum_buffer"


class StopAt:
    """A callback that ends the run after it has made a number of steps, undone ones included."""

    def __init__(self, made) -> None:
        self.left = made

    def on_step(self, training) -> None:
        self.left -= 1
        if not self.left:
            training.stop()


def test_a_run_goes_back_skips_the_batches_since_and_makes_all_its_steps(trained, caplog):
    """Over the end of an epoch, and with a second rollback; interrupted after each one and continued, too."""
    order = Spoiler(MOMENTUM)
    trained(order, "--steps", 15, name="undisturbed")
    # found with the lines of 6 and 10; spoilt after 9 of the steps that are counted anew
    run = trained(whole := Spoiler(MOMENTUM, 5, 9), *FLAGS)
    assert whole.ids == order.ids  # no batch is seen twice, in its epoch of six or after
    newest = checkpoint.load(run / "checkpoints/step-00000011.pt")
    first, second = newest["progress"]["rollbacks"]
    assert [first[name] for name in ("found", "to", "position")] == [6, 4, 6]
    assert [second[name] for name in ("found", "to", "position")] == [10, 8, 12]
    assert newest["progress"]["position"] == 15 and newest["progress"]["step"] == 11
    records = metrics(run)
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 4, 6, 8, 10, 11]
    assert [record["rollback"] for record in records if "rollback" in record] == [first, second]
    said = f"went back to {run}/checkpoints/step-00000008.pt (step 8); 2 steps undone, and as many batches are skipped"
    assert said in caplog.text and "rollback 2 of this run" in caplog.text

    cut = Spoiler(MOMENTUM, 5, 9)
    for made in (7, 6):  # steps: 1 to 6, back to 4, and 5; then 6 to 10, back to 8, and 9
        trained(cut, *FLAGS, name="cut", callbacks=[StopAt(made)])
    trained(cut, *FLAGS, name="cut")
    assert cut.ids == whole.ids
    del newest["config"], newest["sha256"]
    again = checkpoint.load(run.parent / "cut/checkpoints/step-00000011.pt")
    assert first_difference(newest, {name: again[name] for name in newest}) is None


def test_checkpoints_are_copied_after_a_rollback_too(trained, tmp_path):
    run = trained(Spoiler(MOMENTUM, 5), *FLAGS, "--checkpoint-copy", tmp_path / "copy")
    here, there = (
        {path.name: path.read_bytes() for path in checkpoint.found(place / "checkpoints")}
        for place in (run, tmp_path / "copy")
    )
    assert max(here) == max(there) == "step-00000011.pt"
    # that of step 4 with the rollback, if the copy was not passed by the next one
    assert all(here[name] == content for name, content in there.items() if name in here)


def first_difference(ours, theirs, name=""):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        return next(filter(None, (first_difference(ours[key], theirs[key], f"{name}.{key}") for key in ours)), None)
    equal = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    return None if equal else name


def test_a_fault_in_the_first_steps_goes_back_to_the_initial_weights(trained):
    order = Spoiler(MOMENTUM)
    trained(order, "--steps", 3, name="undisturbed")
    run = trained(spoiler := Spoiler(MOMENTUM, 1), *FLAGS, "--steps", 2)
    assert spoiler.ids == order.ids
    (rollback,) = checkpoint.load(run / "checkpoints/step-00000002.pt")["progress"]["rollbacks"]
    assert [rollback[name] for name in ("found", "to", "position")] == [1, 0, 1]


def test_a_run_that_does_not_recover_ends(trained, tmp_path):
    with pytest.raises(TrainingError) as ended:
        trained(Spoiler(MOMENTUM, 5, 5, 5), *FLAGS, "--max-rollbacks", 2)
    sound = tmp_path / "run/checkpoints/step-00000004.pt"
    assert "at step 6, after 2 rollbacks within 10,000 steps, to the steps 4, 4 (--max-rollbacks 2)" in str(ended.value)
    assert f"the last sound checkpoint is {sound} (step 4)" in str(ended.value)
    assert checkpoint.load(sound)["progress"]["position"] == 8


def test_rollbacks_of_long_ago_do_not_count():
    earlier = [Rollback(found, found - 5, found, "") for found in (10, 500, 900)]
    assert rollback.too_many(earlier, 10_009, 3) and not rollback.too_many(earlier, 10_010, 3)
    assert rollback.too_many([], 1, 0)
