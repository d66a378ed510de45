"""Pretrain on a folder of images by a callback that stops it early: `SCRIPT FOLDER RUN`."""

import os
import sys

import fastmoco

told = []


class Stop(fastmoco.Callback):
    """Asks to stop after the second step."""

    def on_step(self, training):
        told.append(training.step)
        if training.step == 2:
            training.stop()


run = fastmoco.pretrain(
    sys.argv[1], recipe="demo", out=sys.argv[2], callbacks=[Stop()], image_size=32, batch_size=8, queue_size=16,
    steps=6, threads=1, log_every=4, packing={"workers": 1},
)  # fmt: skip
print(f"rank {os.environ['RANK']}: told of steps {told}, newest {run.checkpoint.name}")
