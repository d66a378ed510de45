"""Run under torchrun: two ranks with folders of their own under one name, as on nodes that share no files.

chosen.py FOLDER
"""

import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fastmoco.checkpoints import saving
from fastmoco.ranks.world import world
from fastmoco.runs.errors import TrainingError
from fastmoco.runs.run import Run
from fastmoco.settings import CheckpointSettings
from fastmoco.trainer.agreement import RanksDiffer, agree

CHECKPOINTS = Path("run/checkpoints")


class Counting(Run):
    layout = "counting/1"
    value = 0

    def state(self):
        return {"progress": {"step": self.step}, "value": self.value}

    def load_state(self, state):
        self.value = state["value"]

    def check_resumable(self, path, state):
        pass


def run():
    return Counting(here, Path("run"), 100, 100, CheckpointSettings(), batch_size=8)


def write(step, value):
    state = {"format": Counting.layout, "progress": {"step": step}}
    saving.save(CHECKPOINTS, state if value is None else {**state, "value": value}, 9)


def resumed(ours, theirs):
    """Step and value from which a run continues, or what is said; of each checkpoint, value by step."""
    shutil.rmtree("run", ignore_errors=True)
    Path("run").mkdir()
    for step, value in (theirs if here.rank else ours).items():
        write(step, value)
    dist.barrier()
    one = run()
    try:
        found = one.resume()
    except TrainingError as error:
        assert error.exit_code == 1
        return str(error)
    return (one.step, one.value) if found else None


with world() as here:
    (Path(sys.argv[1]) / str(here.rank)).mkdir()
    os.chdir(Path(sys.argv[1]) / str(here.rank))
    assert resumed({4: 1, 8: 2}, {4: 1, 8: 2}) == (8, 2)
    # rank 1 alone has the newest, or none is there but on rank 1: rank 0 decides
    assert resumed({4: 1}, {4: 1, 8: 2}) == (4, 1)
    assert resumed({}, {4: 1}) is None
    # one that lacks a part is used by none, and the one before it by all
    assert resumed({4: 1, 8: None}, {4: 1, 8: None}) == (4, 1)
    said = str(resumed({4: 1, 8: 2}, {4: 1}))
    assert "not all ranks have run/checkpoints/step-00000008.pt of step 8" in said, said
    assert "rank 1: there is no checkpoint run/checkpoints/step-00000008.pt" in said, said
    said = str(resumed({8: 2}, {8: 3}))
    assert "step 8, from which rank 0 continues; rank 1: its copy has other bytes" in said, said

    one = run()
    one.step = one.agreed_step = 8
    one.step = 10
    if here.is_main:
        shutil.copy(CHECKPOINTS / "step-00000008.pt", "../1/run/checkpoints")
        write(10, 5)  # between two comparisons
    try:
        agree(one, {"weight": torch.tensor([1.0 + here.rank])})
    except RanksDiffer as error:
        said = str(error)
        assert said.startswith("weight on rank 1 differs from rank 0 at step 10, as do 1 of 1 tensors"), said
        assert said.endswith(
            "all ranks agreed last after step 8, so 1 later checkpoint (step-00000010.unsure.pt, …) will not be used, "
            "and the same command continues from run/checkpoints/step-00000008.pt"
        ), said
    else:
        raise AssertionError("the difference was not found")
    again = run()
    again.resume()
    assert again.step == 8
    if here.is_main:
        assert sorted(path.name for path in CHECKPOINTS.iterdir()) == ["step-00000008.pt", "step-00000010.unsure.pt"]
        print("ok")
