"""Run under torchrun: the last rank fails in training, or is gone, or fails with a collective of its own in flight.

fault.py full FLAGS of fastmoco train: after the third step it writes to a full device.
fault.py memory FLAGS: after the third step it wants more memory than there is.
fault.py gone FLAGS: after the third step rank 1 ends without a word, and without failing.
fault.py in-flight: rank 1 starts a sum, as DistributedDataParallel does during a backward pass, and fails; the others
wait for something else and never join.
fault.py defect: the last rank fails an assertion while the others wait for it.
fault.py set FOLDER: the last rank opens that shard set, which is damaged, while the others wait for it.
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
from shards import ShardSet
from shards.command import command

kind, *flags = sys.argv[1:]
LAST = str(int(os.environ["WORLD_SIZE"]) - 1)
FAILING = os.environ["RANK"] == ("1" if kind in ("gone", "in-flight") else LAST)


def fail():
    if kind == "memory":
        torch.empty(10**15)
    if kind == "set":
        ShardSet(flags[0])
    assert kind != "defect", "two and two"
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


def awaited():
    with world():
        if FAILING:
            fail()
        dist.barrier()


RUNS = {"in-flight": in_flight, "defect": awaited, "set": awaited}
command("fastmoco train", RUNS.get(kind, lambda: train(parse(flags), on_step) and None))
