"""Run under torchrun: rank 1 is asked to stop at step 4.

stop.py FOLDER
"""

import os
import signal
import sys
from pathlib import Path

from fastmoco.ranks.world import world
from fastmoco.runs.errors import Stopped
from fastmoco.runs.run import Run
from fastmoco.settings import CheckpointSettings


class Counting(Run):
    layout = "counting/1"

    def state(self):
        return {"progress": {"step": self.step}}

    def load_state(self, state):
        pass

    def check_resumable(self, path, state):
        pass


folder = Path(sys.argv[1])
with world() as here:
    run = Counting(
        here,
        folder / "run",
        steps_per_epoch=100,
        total_steps=100,
        saving=CheckpointSettings(keep_checkpoints=1),
        batch_size=8,
    )
    try:
        with run.opened({}):
            for _ in run.batches(lambda epoch, first: iter(range(first, 100))):
                run.advance()
                if run.step == 4 and here.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                run.save_if_due(50)
    except Stopped as reason:
        (folder / f"rank-{here.rank}").write_text(str(reason))
