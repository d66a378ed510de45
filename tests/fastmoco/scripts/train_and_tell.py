"""Train as the command does, with the flags given; then tell each rank's sample ids and final state.

TELL=FOLDER: write rank-R.pt there. KILL_AT=N: SIGKILL this process when step N is done.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from fastmoco.train import parse
from fastmoco.trainer.loop import train
from fastmoco.trainer.metrics import set_up_logging

rank = int(os.environ.get("RANK", 0))
kill_at = int(os.environ.get("KILL_AT", -1))
ids, last = [], {}


def on_step(train_step, batch, contrast, step):
    ids.append(batch.ids.tolist())
    last.update(train_step.state())
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


set_up_logging()
train(parse(sys.argv[1:]), on_step)
if "TELL" in os.environ:
    torch.save({"ids": ids, **last}, Path(os.environ["TELL"]) / f"rank-{rank}.pt")
