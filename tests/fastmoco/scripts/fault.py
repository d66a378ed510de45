"""Run under torchrun: rank 1 fails in training, or is gone, or fails with a collective of its own in flight.

fault.py full FLAGS of fastmoco train: after the third step rank 1 writes to a full device.
fault.py gone FLAGS: after the third step rank 1 ends without a word, and without failing.
fault.py in-flight: rank 1 starts a sum, as DistributedDataParallel does during a backward pass, and fails; the others
wait for something else and never join.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fastmoco.ranks.world import world
from fastmoco.train import parse
from fastmoco.trainer.loop import train
from shards.command import command

kind, *flags = sys.argv[1:]
FAILING = os.environ["RANK"] == "1"


def fail():
    Path("/dev/full").write_text("words")


def on_step(train_step, batch, contrast, step):
    if FAILING and step == 2:
        if kind == "gone":
            os._exit(0)
        fail()


def in_flight():
    with world():
        if not FAILING:
            signal.pause()
        work = dist.all_reduce(torch.ones(1000), async_op=True)
        fail()
        work.wait()


command("fastmoco train", in_flight if kind == "in-flight" else lambda: train(parse(flags), on_step) and None)
