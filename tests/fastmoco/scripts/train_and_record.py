"""Train as the command does, with the same flags, and record each rank's sample ids and final state.

RECORD=FOLDER: write rank-R.pt there. KILL_AT=N: SIGKILL this process when step N is done and no checkpoint is being
written, so that it is known where the next start continues; KILL_ONCE=R: of rank R alone, and not after a restart.
SLOW=R: on rank R every read of a tar takes 50 ms longer, as on a slow file system.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from fastmoco.runs.log import set_up_logging
from fastmoco.train import parse
from fastmoco.trainer.loop import train

rank = int(os.environ.get("RANK", 0))
kill_at = int(os.environ.get("KILL_AT", -1))
if "KILL_ONCE" in os.environ and (os.environ["KILL_ONCE"], "0") != (
    str(rank),
    os.environ["TORCHELASTIC_RESTART_COUNT"],
):
    kill_at = -1
ids, last = [], {}
delayed = 0
pread = os.pread


def slow_pread(*where):
    global delayed
    time.sleep(0.05)
    delayed += 1
    return pread(*where)


if os.environ.get("SLOW") == str(rank):
    os.pread = slow_pread


def on_step(train_step, batch, contrast, step):
    ids.append(batch.ids.tolist())
    last.update(train_step.state())
    if step == kill_at:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
        os.kill(os.getpid(), signal.SIGKILL)


set_up_logging()
train(parse(sys.argv[1:]), on_step)
if "RECORD" in os.environ:
    torch.save({"ids": ids, "delayed": delayed, **last}, Path(os.environ["RECORD"]) / f"rank-{rank}.pt")
