"""Train with a narrow encoder, and append each step's ids to RECORD/RANK.jsonl, with the number of ranks.

A step takes PACE seconds, so that nodes can leave and join within an epoch, until RECORD/fast exists.
"""

import json
import os
import sys
import time
from pathlib import Path

from fastmoco.model import encoders
from fastmoco.runs.log import set_up_logging
from fastmoco.train import parse
from fastmoco.trainer.loop import train
from shards.command import command
from tests.support.runs import narrow_resnet10

rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
record, pace = Path(os.environ["RECORD"]), float(os.environ["PACE"])


def on_step(train_step, batch, contrast, step):
    line = {"step": step, "ranks": ranks, "ids": batch.ids.tolist()}
    with (record / f"{rank}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    if not (record / "fast").exists():
        time.sleep(pace)


encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
set_up_logging()
command("fastmoco train", lambda: train(parse(sys.argv[1:]), on_step) and None)
