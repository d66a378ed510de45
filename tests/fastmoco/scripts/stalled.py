"""Run under torchrun: rank 1 stops or hangs after step 4; rank 0 ends it once it has given up.

stalled.py FOLDER stopped|hangs
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

from fastmoco.ranks.heartbeat import STEPS
from fastmoco.ranks.world import world
from fastmoco.runs.run import Run
from fastmoco.settings import CheckpointSettings
from shards.command import command


class Counting(Run):
    layout = "counting/1"

    def state(self):
        return {"progress": {"step": self.step}}

    def load_state(self, state): ...

    def check_resumable(self, path, state): ...


def stuck():
    threading.Event().wait()


def gone(here, folder, how):
    """Whether rank 1 is where it will not come back from."""
    if how == "stopped":
        status = Path("/proc", (folder / "1").read_text(), "stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"
    beat = here.heartbeat._beats()[1]
    return beat is not None and beat.stack.endswith(" stuck")


def main():
    folder, how = Path(sys.argv[1]), sys.argv[2]
    with world(timedelta(seconds=5)) as here:
        (folder / f"{here.rank}").write_text(str(os.getpid()))
        run = Counting(here, folder / "run", 100, 100, CheckpointSettings(), batch_size=8)
        with run.opened({}):
            for _ in run.batches(lambda epoch, first: iter(range(first, 100))):
                run.advance()
                if run.step == 4 and here.rank == 0:
                    while not gone(here, folder, how):  # however long that takes, it is not waited for in vain
                        here.heartbeat.does(STEPS, 3)
                        time.sleep(0.01)
                if run.step == 4 and here.rank == 1:
                    beat = here.heartbeat._count
                    while here.heartbeat._count < beat + 2:  # the last one tells of this step
                        time.sleep(0.01)
                    os.kill(os.getpid(), signal.SIGSTOP) if how == "stopped" else stuck()


try:
    command("count", main)
finally:
    if os.environ["RANK"] == "0":
        os.kill(int((Path(sys.argv[1]) / "1").read_text()), signal.SIGKILL)
