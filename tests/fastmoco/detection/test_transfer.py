"""Small transfers: they learn, continue bit for bit and agree between ranks; pycocotools confirms their metrics."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.detect import in_words
from fastmoco.detection.errors import NoEvaluation
from fastmoco.detection.loop import FORMAT, Transfer
from fastmoco.model.encoders import backbone
from fastmoco.runs.errors import Stopped
from fastmoco.settings import plain
from tests.support.runs import metrics
from tests.support.scenes import write_voc

SCRIPT = Path(__file__).parent / "scripts" / "transfer.py"
pytestmark = pytest.mark.usefixtures("one_thread")
LEARNING = {
    "voc-c4": {"epochs": 1, "lr": 0.06, "eval_every": 1000, "checkpoint_every": 42},
    "coco-fpn-1x": {"epochs": 1, "lr": 0.05, "eval_every": 1000, "checkpoint_every": 42},
}


# a parameter of the fixture, not of the tests: pytest then runs the tests of a recipe one after another, and xdist's
# workers seldom both need the same recipe
@pytest.fixture(scope="module", params=[pytest.param("voc-c4", marks=pytest.mark.long), "coco-fpn-1x"])
def whole(request, made, tmp_path_factory, narrow, one_thread):
    """A recipe's name, one uninterrupted epoch of it, and its result."""
    name = request.param
    out = tmp_path_factory.mktemp("whole") / name
    transfer = Transfer(made.settings(name, out, **LEARNING[name]), made.here)
    return name, transfer, transfer.run()


def last(out):
    return checkpoint.load(checkpoint.found(out / "checkpoints")[0], FORMAT)


def test_it_improves_over_its_start(whole):
    _, transfer, result = whole
    records = metrics(transfer.settings.out)
    measured = [record for record in records if "AP50" in record]
    assert [record["step"] for record in measured] == [0, transfer.total_steps]
    assert measured[1]["AP50"] > measured[0]["AP50"] + 10
    assert measured[1]["AP50"] == result["AP50"] and measured[1]["AP"] == result["AP"]
    losses = [record["loss"] for record in records if "loss" in record]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    if transfer.settings.mask:
        assert measured[1]["segm_AP50"] > measured[0]["segm_AP50"] + 10


def test_the_metrics_are_pycocotools_on_the_same_detections(made, whole):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    name, transfer, result = whole
    out = transfer.settings.out
    truth = COCO(str(out / "truth.json" if name == "voc-c4" else made.coco / "annotations/instances_val.json"))
    detected = truth.loadRes(str(out / "detections.json"))
    for kind, ours in result["coco"].items():
        evaluation = COCOeval(truth, detected, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        expected = [100 * value for value in evaluation.stats[:3]]
        assert [ours["AP"], ours["AP50"], ours["AP75"]] == pytest.approx(expected, abs=1e-9)
        assert expected[1] > 10
    assert set(result["coco"]) == ({"bbox", "segm"} if name == "coco-fpn-1x" else {"bbox"})
    assert result["AP"] == (result["voc"]["11-point"]["AP"] if name == "voc-c4" else result["coco"]["bbox"]["AP"])


class Killed(BaseException):  # not an Exception, after which the state would be saved
    pass


def test_a_killed_transfer_continues_bit_for_bit(made, tmp_path, whole):
    name, transfer, result = whole
    # the state of a run that was killed after its last checkpoint but one
    before = checkpoint.found(transfer.settings.out / "checkpoints")[1]
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(before, tmp_path / "checkpoints")
    shutil.copy(transfer.settings.out / "metrics.jsonl", tmp_path)
    chosen = made.settings(name, tmp_path, **LEARNING[name], **{"threads": 2} if name == "voc-c4" else {})

    def kill(running, _):
        if running.step == transfer.total_steps - 2:
            raise Killed

    with pytest.raises(Killed):
        Transfer(chosen, made.here, kill).run()
    assert Transfer(chosen, made.here).run() == result
    ours, theirs = last(tmp_path), last(transfer.settings.out)
    assert ours["detect"] == theirs["detect"] and ours["progress"] == theirs["progress"]
    for part in ("model", "optimiser"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    steps = [record["step"] for record in metrics(tmp_path) if "loss" in record]
    assert steps == list(range(1, transfer.total_steps + 1))


@pytest.mark.parametrize("whole", ["coco-fpn-1x"], indirect=True)
def test_a_finished_transfer_reports_its_result_again_and_another_is_refused(made, whole, tmp_path):
    _, transfer, result = whole
    torch.save(backbone("resnet10").state_dict(), tmp_path / "encoder.pth")
    assert Transfer(transfer.settings, made.here).run() == result
    for change, message in (
        ({"lr": 0.5}, r"of another transfer: lr was 0.05, now 0.5. Choose another --out"),
        ({"init": f"{tmp_path}/encoder.pth"}, "encoder was not given, now .*; init was 'random', now '.*/encoder.pth'"),
        ({"train": (f"{made.coco}:val",)}, "train was "),
    ):
        few = LEARNING["coco-fpn-1x"] | change
        with pytest.raises(CheckpointError, match=message):
            Transfer(made.settings("coco-fpn-1x", transfer.settings.out, **few), made.here).run()
    shorter = replace(transfer.settings, epochs=None, iterations=5)
    message = "is finished, with other settings: --iterations was 90000, now 5; --epochs was 1, now not given"
    with pytest.raises(CheckpointError, match=message):
        Transfer(shorter, made.here).run()


def test_sigterm_leaves_a_checkpoint_and_the_command_continues(made, tmp_path, in_process):
    """Mask R-CNN on C4, started by the class and finished by the command."""
    few = {"iterations": 3, "threads": 1}

    def terminate(running, _):
        if running.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"stopped after step [12]; the same command continues from there"):
        Transfer(made.settings("coco-c4-1x", tmp_path / "run", **few), made.here, terminate).run()
    shown = plain(made.settings("coco-c4-1x", tmp_path / "run", **few))
    flags = []
    for name, value in shown.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None and value != []:
            flags += [flag, *(value if isinstance(value, list) else [value])]
    done = in_process("-m", "fastmoco.detect", *flags, "--json", tmp_path / "result.json")
    assert "continuing from" in done.stderr and "pycocotools segm: AP" in done.stdout and "(8 images)" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 3 and set(result["coco"]) == {"bbox", "segm"}
    assert {r["step"] for r in metrics(tmp_path / "run")} == {1, 2, 3}


def test_a_stop_at_the_last_step_leaves_the_evaluation_to_the_same_command(made, tmp_path):
    settings = made.settings("voc-c4", tmp_path / "run", iterations=1, eval_every=0, threads=1)
    with pytest.raises(Stopped, match="stopped after step 1;") as stopped:
        Transfer(settings, made.here, lambda *_: os.kill(os.getpid(), signal.SIGTERM)).run()
    assert stopped.value.stopped_by == signal.SIGTERM and not (tmp_path / "run/detections.json").exists()
    assert Transfer(settings, made.here).run()["steps"] == 1
    assert (tmp_path / "run/detections.json").exists()


def test_test_photographs_that_cannot_be_read_are_left_out_and_training_goes_on(made, tmp_path, caplog):
    """All of them for a while, and one for good."""
    photos = sorted(write_voc(tmp_path / "voc", {"test": (1000, made.val)}).glob("JPEGImages/*"))
    whole = [photo.read_bytes() for photo in photos]

    def damage(running, _):
        for place, (photo, content) in enumerate(zip(photos, whole, strict=True)):
            photo.write_bytes(content if running.step == 2 and place != 3 else content[:200])

    few = {"val": f"{tmp_path}/voc:test", "iterations": 2, "eval_every": 1}
    settings = made.settings("voc-c4", tmp_path / "run", **few)
    result = Transfer(settings, made.here, damage).run()
    measured = [record for record in metrics(tmp_path / "run") if "AP50" in record]
    assert [(record["AP50"] is None, record.get("left_out", 0)) for record in measured] == [
        *((False, 0), (True, 0), (False, 1)),
    ]
    named = f"left out of the evaluation at step 2: {photos[3]} cannot be decoded: "
    assert named in caplog.text and "no evaluation at step 1: 8 of 8 photographs of " in caplog.text
    warned = {record["warning"] for record in metrics(tmp_path / "run") if "message" in record}
    assert warned == {"evaluation", "photograph_4"}
    assert result["left_out"] == 1 and in_words(result).endswith("(7 images); bad images left out: 1 of val")
    assert len(json.loads((tmp_path / "run/truth.json").read_text())["images"]) == 7
    assert Transfer(settings, made.here).run() == result
    damage(SimpleNamespace(step=1), None)
    with pytest.raises(NoEvaluation, match=r"8 of 8 photographs of .*:test cannot be read; .* replace it, or drop it"):
        Transfer(settings, made.here).run()


@pytest.mark.distributed
def test_ranks_hold_the_same_model_find_the_same_and_continue_bit_for_bit(made, tmp_path, torchrun):
    torchrun(3, SCRIPT, made.coco, tmp_path)
    first, *others = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(3))
    assert others == [first, first]
    assert first["ids"] == [100 + 1000 + place for place in range(made.val)]
    assert first["step"] == 4
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_the_learning_rate_is_the_papers(made):
    from fastmoco.detection.settings import recipe

    voc, coco = recipe("voc-c4"), recipe("coco-fpn-2x")
    assert [round(voc.lr_at(step), 9) for step in (0, 50, 100, 17_999)] == [2e-5, 0.01001, 0.02, 0.02]
    assert [round(voc.lr_at(step), 9) for step in (18_000, 21_999, 22_000)] == [0.002, 0.002, 0.0002]
    assert (voc.iterations, voc.batch_size, voc.weight_decay, voc.min_sizes[0], voc.min_sizes[-1]) == (
        *(24_000, 16, 1e-4, 480, 800),
    )
    assert (coco.iterations, coco.milestones, coco.min_sizes[0], coco.mask) == (180_000, (120_000, 160_000), 640, True)
    scaled = made.settings("voc-c4", None, batch_size=8, scale_lr=True)
    assert scaled.lr == 0.02 and scaled.lr_at(30) == 0.01
    assert made.settings("voc-c4", None, batch_size=8).lr_at(30) == 0.02


def test_milestones_beyond_the_run_are_named(made, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = Transfer(made.settings("voc-c4", tmp_path, iterations=20, milestones=(10, 18_000, 22_000)), made.here)
    run._log_setup()
    assert "--milestones 18000 22000 are not within the 20 steps, so the rate does not fall there" in caplog.text
    assert [run.settings.lr_at(step) for step in (9, 10, 19)] == pytest.approx([0.02, 0.002, 0.002])
