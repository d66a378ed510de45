"""Train as the command does, write each step's ids to RECORD/STEP-RANK, and be asked to stop after STOP_AFTER steps."""

import os
import signal
import sys
from pathlib import Path

from fastmoco.runs.log import set_up_logging
from fastmoco.train import parse
from fastmoco.trainer.loop import train
from shards.command import command

rank, stop_after = int(os.environ.get("RANK", 0)), int(os.environ["STOP_AFTER"])


def on_step(train_step, batch, contrast, step):
    Path(os.environ["RECORD"], f"{step}-{rank}").write_text(" ".join(map(str, batch.ids.tolist())))
    if rank == 0 and step + 1 == stop_after:
        os.kill(os.getpid(), signal.SIGUSR1)


set_up_logging()
command("fastmoco train", lambda: train(parse(sys.argv[1:]), on_step) and None)
