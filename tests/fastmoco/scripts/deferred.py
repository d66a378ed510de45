"""Train as on a GPU: the figures of a step are read after the next one. Prints the steps at which figures were open.

STOP_AT: a step after which rank 0 gets SIGTERM. SPOIL_AT: a step after which a weight is not a number.
"""

import os
import signal
import sys

from fastmoco.ranks.world import world
from fastmoco.train import parse
from fastmoco.trainer.data import open_data
from fastmoco.trainer.loop import Trainer
from shards.command import command


def main():
    config = parse(sys.argv[1:])
    with world() as here, open_data(config) as data:
        opened = []

        def on_step(train_step, batch, contrast, step):
            if trainer.unlogged is not None:
                opened.append((trainer.unlogged[0], step + 1))
            if here.is_main and os.environ.get("STOP_AT") == str(step + 1):
                os.kill(os.getpid(), signal.SIGTERM)
            if os.environ.get("SPOIL_AT") == str(step + 1):
                next(train_step.model.encoder.parameters()).data.fill_(float("nan"))

        trainer = Trainer(config, here, data, config.out, on_step)
        assert not trainer.defers_logs  # on a CPU, where nothing is launched ahead
        trainer.defers_logs = config.log_every > 1
        try:
            trainer.run()
        finally:
            if here.is_main:
                print(opened)


command("fastmoco train", main)
