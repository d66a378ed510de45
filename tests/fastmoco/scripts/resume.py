"""Run under torchrun: two steps, a new start from their state and two more equal four steps, bit for bit.

Prints a line for each case of settings: how many tensors of the model and the optimiser differ on rank 0.
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist

from fastmoco.model import encoders
from fastmoco.ranks.world import world
from fastmoco.recipes import recipe
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import narrow_resnet10

torch.set_num_threads(1)
encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
RANKS, STEPS, SIZE, SAMPLES = int(os.environ["WORLD_SIZE"]), 4, 32, 60
BATCH = 4 * RANKS
BASE = replace(recipe("demo"), batch_size=BATCH, image_size=SIZE, queue_size=29, precision="fp32", lr=0.05)
CASES = [
    {},
    {"bn_splits": 2},
    {"batch_norm": "plain", "symmetric": True},
    {"batch_norm": "sync"},
    {"batch_norm_kernel": "fused", "bn_splits": 2},
    {"mechanism": "end-to-end", "symmetric": True},
    {"mechanism": "memory-bank"},
    {
        "mechanism": "batch",
        "symmetric": True,
        "batch_norm": "sync",
        "head": "mlp-bn",
        "head_width": 16,
        "predictor": "mlp-bn",
        "optimiser": "lars",
        "weight_decay_on": "matrices",
    },
    {"accumulate": 2, "symmetric": True},
    {"precision": "bf16"},
    {"precision": "fp16"},
]


def batch(rank, step):
    generator = torch.Generator().manual_seed(100 * step + rank)
    views = torch.randn(2, BATCH // RANKS, 3, SIZE, SIZE, generator=generator)
    ids = torch.randint(SAMPLES, (BATCH // RANKS,), generator=generator)
    return TwoViews(*(view.contiguous(memory_format=torch.channels_last) for view in views), ids)


def start(settings):
    """A new start, and all that it leaves behind."""
    train = TrainStep(replace(BASE, **settings), torch.device("cpu"), STEPS, SAMPLES)
    assert all(parameter.grad is None for parameter in train.model.parameters())
    return train, copy.deepcopy({"rng": torch.get_rng_state(), **train.state()})


def tensors(state) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


def differing(ours, theirs):
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    return sum(not torch.equal(*pair) for pair in pairs), len(pairs)


def main():
    alone = [start(settings)[1] for settings in CASES]  # one process, without DistributedDataParallel
    with world() as here:
        for settings, expected in zip(CASES, alone, strict=True):
            train, fresh = start(settings)
            assert differing(fresh, expected)[0] == 0, f"a start of several ranks differs from one process: {settings}"
            half = {}
            for step in range(STEPS):
                if step == STEPS // 2:
                    half = copy.deepcopy(train.state())
                train(batch(here.rank, step), step)
            resumed, _ = start(settings)
            resumed.load_state(half)
            for step in range(STEPS // 2, STEPS):
                resumed(batch(here.rank, step), step)
            count, total = differing(train.state(), resumed.state())
            if here.is_main:
                print(f"{count} of {total} tensors differ with {settings}")
        dist.barrier()


main()
