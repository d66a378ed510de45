"""Run under torchrun: steps in micro-batches with torch.compile equal those without, in float64, to rounding.

Prints a line for each case of settings.
"""

import os
from dataclasses import replace

import torch

from fastmoco.model import encoders
from fastmoco.ranks.world import world
from fastmoco.recipes import recipe
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import narrow_resnet10

torch.set_num_threads(1)
encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
RANKS, STEPS, SIZE, SAMPLES = int(os.environ["WORLD_SIZE"]), 3, 32, 60
BATCH = 8 * RANKS
BASE = replace(recipe("demo"), batch_size=BATCH, image_size=SIZE, queue_size=29, precision="fp32", lr=0.05)
CASES = [{}, {"batch_norm": "sync"}, {"symmetric": True, "batch_norm": "sync"}]


def batch(rank, step):
    generator = torch.Generator().manual_seed(100 * step + rank)
    views = torch.randn(2, BATCH // RANKS, 3, SIZE, SIZE, generator=generator).double()
    ids = torch.randint(SAMPLES, (BATCH // RANKS,), generator=generator)
    return TwoViews(*(view.contiguous(memory_format=torch.channels_last) for view in views), ids)


def trained(here, **settings):
    torch.set_default_dtype(torch.float64)  # before DistributedDataParallel lays out its buckets
    train = TrainStep(replace(BASE, accumulate=2, **settings), here.device, STEPS, SAMPLES)
    losses = [train(batch(here.rank, step), step).loss for step in range(STEPS)]
    return torch.stack(losses), train.model.encoder.state_dict()


with world() as here:
    for settings in CASES:
        (ours, weights), (theirs, expected) = trained(here, compile=True, **settings), trained(here, **settings)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-8, msg=name)
        if here.is_main:
            print(f"equal with {settings}")
