"""Run under torchrun: activations that are computed again change nothing on several ranks, bit for bit. Prints ok.

usage: recomputed.py few|all

The passes that are made again exchange BatchNorm's statistics again, in between the gradients of other layers.
"""

import os
import sys
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
RANK, STEPS, BATCH = int(os.environ["RANK"]), 2, 4
BASE = replace(
    recipe("demo"), batch_size=2 * BATCH, image_size=32, queue_size=16, precision="fp32", lr=0.05, batch_norm="sync"
)
FEW = [{}, {"accumulate": 2}]
CASES = [
    *FEW,
    {"batch_norm_kernel": "fused"},
    {"mechanism": "end-to-end", "symmetric": True},
    {"mechanism": "batch", "symmetric": True, "head": "mlp-bn", "head_width": 16, "predictor": "mlp-bn"},
    {"arch": "timm:test_efficientnet", "drop_path": 0.5},
    {"batch_norm": "shuffle"},
]


def trained(settings):
    """All state after some steps, the losses, and how often a convolution within the encoder was passed."""
    step = TrainStep(replace(BASE, **settings), torch.device("cpu"), STEPS)
    passes = [0]
    within = [m for n, m in step.model.encoder.backbone.named_modules() if "layer" in n or "block" in n]
    first = next(module for module in within if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    state = {}
    for n in range(STEPS):
        views = torch.randn(2, BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(10 * n + RANK))
        batch = TwoViews(*(view.contiguous(memory_format=torch.channels_last) for view in views), torch.arange(BATCH))
        state[f"loss {n}"] = step(batch, n).loss.detach()
    for part, named in step.model.state().items():
        state |= {f"{part}.{name}": value for name, value in named.items()}
    return state, passes[0]


with world() as here:
    assert here.size == 2
    for case in {"few": FEW, "all": CASES}[sys.argv[1]]:
        kept, once = trained(case)
        again, twice = trained(case | {"checkpoint_activations": True})
        assert twice == 2 * once, (case, once, twice)
        assert kept.keys() == again.keys()
        for name, value in kept.items():
            assert torch.equal(value, again[name]), (case, name)
    if here.rank == 0:
        print("ok")
