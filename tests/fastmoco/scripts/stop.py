"""Runs under torchrun, one after the other, of which each ends before its last step.

signal: rank 1 gets SIGTERM after step 4. data: rank 1 does, while it waits for images that never come; rank 0 has its
own. failed: rank 1 cannot read its images after step 4. user: a function of the user's fails on rank 1 after step 4,
while rank 0 waits for a sum. early: rank 0 ends the run, as a callback may. unsaved: rank 1 gets SIGTERM after step 4,
and rank 0 cannot write the state.

stop.py FOLDER
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from fastmoco.ranks.endings import PeerError
from fastmoco.ranks.world import world
from fastmoco.runs.disk import Disk
from fastmoco.runs.errors import Stopped, TrainingError
from fastmoco.runs.run import Run
from fastmoco.runs.status import reported
from fastmoco.settings import CheckpointSettings
from shards.errors import StoreError


class Counting(Run):
    layout = "counting/1"

    def state(self):
        return {"progress": {"step": self.step}}

    def load_state(self, state):
        pass

    def check_resumable(self, path, state):
        pass


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def batches(case, rank, epoch, first):
    for step in range(first, 100):
        if step == 4 and rank == 1:
            if case == "data":
                threading.Timer(0.1, terminate).start()
                while True:  # not one long wait: a signal just before it would not end it
                    time.sleep(0.01)
            if case == "failed":
                raise StoreError("shard-000000.tar cannot be read")
        yield step


folder = Path(sys.argv[1])
KEPT = CheckpointSettings(keep_checkpoints=1)
with world() as here:
    for case in ("signal", "data", "failed", "user", "early", "unsaved"):
        run = Counting(here, folder / case, steps_per_epoch=100, total_steps=100, saving=KEPT, batch_size=8)
        run.folder.mkdir(exist_ok=True)
        if case == "unsaved":
            run.disk = Disk(patience=0)
            if here.is_main:
                run.checkpoints.write_text("in the way")
        try:
            with reported(run.folder, here), run.opened({}):
                for _ in run.batches(lambda epoch, first, case=case: batches(case, here.rank, epoch, first)):
                    run.advance()
                    if run.step == 4 and here.rank == 1 and case in ("signal", "unsaved"):
                        terminate()
                    if (case, run.step, here.rank) == ("early", 4, 0):
                        run.stop_early()
                    with run.holding_errors():
                        assert (case, run.step, here.rank) != ("user", 4, 1), "two and two"
                    run.sum_over_ranks(torch.ones(1))
                    run.save_if_due(50)
        except (Stopped, TrainingError, PeerError, StoreError, AssertionError) as reason:
            (folder / f"{case}-{here.rank}").write_text(f"{type(reason).__name__} {reason}")
        if here.is_main and case != "unsaved":
            saved = [path.name for path in run.checkpoints.iterdir()]
            assert saved == ["step-00000004.pt"], (case, saved)
