"""Save after step 2, stop after step 3, and press Ctrl-C twice more while the second checkpoint is written.

impatient.py FOLDER
"""

import os
import signal
import sys
import threading
from pathlib import Path

import torch

from fastmoco.ranks.world import World
from fastmoco.runs.log import set_up_logging
from fastmoco.runs.run import Run
from fastmoco.settings import CheckpointSettings
from shards.command import command


class Slow(Run):
    layout = "slow/1"

    def state(self):
        if self.step == 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait()  # a disk that hangs
        return {"progress": {"step": self.step}}

    def load_state(self, state): ...

    def check_resumable(self, path, state): ...


def main():
    set_up_logging()
    here = World(0, 1, torch.device("cpu"))
    run = Slow(
        here,
        Path(sys.argv[1]),
        steps_per_epoch=9,
        total_steps=9,
        saving=CheckpointSettings(keep_checkpoints=1),
        batch_size=8,
    )
    with run.opened({}):
        for _ in run.batches(lambda epoch, first: iter(range(first, 9))):
            run.advance()
            if run.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            run.save_if_due(2)


command("slow", main)
