"""Run under torchrun with FLAGS of fastmoco train: rank 1 alone meets trouble, from which all ranks recover together.

Each rank runs in the folder ranks/R of the current one, so that rank 1 can have a validation set of its own, `val`,
whose tar is away until step 3. After step 8 one of its BatchNorm's statistics is not a number.
"""

import os
import sys
from pathlib import Path

import torch

from fastmoco.model import encoders
from fastmoco.train import parse
from fastmoco.trainer.loop import train
from shards.command import command
from tests.support.runs import narrow_resnet10

torch.set_num_threads(1)
encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
rank = os.environ["RANK"]
os.chdir(Path("ranks") / rank)
spoilt = []


def on_step(train_step, batch, contrast, step):
    if rank == "1" and step == 3:
        Path("shard-000000.tar").rename("val/shard-000000.tar")
    if rank == "1" and step == 8 and not spoilt:
        spoilt.append(step)
        train_step.model.encoder.backbone.bn1.running_var[2] = float("nan")


command("fastmoco train", lambda: train(parse(sys.argv[1:]), on_step) and None)
