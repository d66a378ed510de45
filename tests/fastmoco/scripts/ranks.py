"""Run under torchrun: several ranks equal one process with as many BatchNorm groups, in float64. Prints ok.

What one process makes is computed on each rank before the process group is joined.
"""

import os
from dataclasses import replace

import torch
import torch.distributed as dist

from fastmoco.model import encoders
from fastmoco.ranks.exchange import all_gather_rows
from fastmoco.recipes import recipe
from fastmoco.runs.errors import TrainingError
from fastmoco.trainer.agreement import check_agreement
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import narrow_resnet10

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
RANKS, STEPS, BATCH, SIZE, SAMPLES = int(os.environ["WORLD_SIZE"]), 3, 12, 32, 40
BASE = replace(
    recipe("demo"), batch_size=BATCH, image_size=SIZE, queue_size=29, precision="fp32", lr=0.05, momentum_key=0.9
)
SPLIT = {"bn_splits": RANKS}
HEADS = {"head": "mlp-bn", "head_width": 16, "predictor": "mlp-bn"}
CASES = [  # settings of both sides, of the one process alone, of the ranks alone
    ({}, SPLIT, {}),
    ({"symmetric": True}, SPLIT, {}),
    ({"mechanism": "end-to-end", "symmetric": True}, SPLIT, {}),
    ({"mechanism": "memory-bank"}, SPLIT, {}),
    ({"batch_norm": "plain"}, SPLIT, {}),
    ({}, {}, {"batch_norm": "sync"}),
    ({"mechanism": "end-to-end"}, {}, {"batch_norm": "sync"}),
    ({"mechanism": "batch", "symmetric": True, **HEADS}, {}, {"batch_norm": "sync"}),
    ({"mechanism": "batch", **HEADS}, SPLIT, {"batch_norm_kernel": "fused"}),
    ({}, SPLIT, {"batch_norm_kernel": "fused"}),
    ({}, {}, {"batch_norm": "sync", "batch_norm_kernel": "fused"}),
    ({"symmetric": True}, {"bn_splits": 2 * RANKS}, {"accumulate": 2}),
    ({"mechanism": "memory-bank"}, {"bn_splits": 2 * RANKS}, {"accumulate": 2, "batch_norm_kernel": "fused"}),
]


def batch(step, rank, ranks):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    ids[0] = ids[-1]  # an id may repeat: a bad image is replaced by another sample
    views = torch.randn(2, BATCH, 3, SIZE, SIZE, generator=generator)
    own = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    return TwoViews(*(view[own].contiguous(memory_format=torch.channels_last) for view in views), ids[own])


def run(settings, rank=0, ranks=1):
    step = TrainStep(replace(BASE, **settings), torch.device("cpu"), STEPS, SAMPLES)
    losses = torch.stack([step(batch(n, rank, ranks), n).loss.detach() for n in range(STEPS)])
    return step.model, losses


def running(model):
    return {name: b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


def statistics(settings, rank=0, ranks=1):
    """Means of the first BatchNorm's groups, of queries and keys, where views and encoders are the same."""
    model = TrainStep(replace(BASE, **settings), torch.device("cpu"), STEPS, SAMPLES).model
    seen = []
    for encoder in (model.encoder, model.parts()["key_encoder"]):
        encoder.backbone.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    views = batch(0, rank, ranks)
    model(views.query, views.query, views.ids, 0, 0.9)
    return [torch.stack([part.mean((0, 2, 3)) for part in x.chunk(settings.get("bn_splits", 1))]) for x in seen]


def main():
    alone = [run({**both, **one}) for both, one, _ in CASES]
    means_alone = statistics(SPLIT)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for (both, _, many), (expected, expected_losses) in zip(CASES, alone, strict=True):
        model, losses = run({**both, **many}, rank, RANKS)
        check_agreement(model.shared(), STEPS)
        dist.all_reduce(losses)
        torch.testing.assert_close(losses / RANKS, expected_losses, rtol=0, atol=1e-9, msg=f"{both} {many}")
        modules = expected.parts().items()
        wanted = {f"{part}.{name}": t for part, module in modules for name, t in module.state_dict().items()}
        for name, tensor in model.shared().items():
            if "tracked" not in name:
                torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-9, msg=f"{name} {both} {many}")
        tracked = {int(buffer) for name, buffer in model.named_buffers() if "tracked" in name}
        passes = (2 if both.get("symmetric") else 1) * many.get("accumulate", 1)
        assert tracked == {STEPS * passes}, (tracked, both, many)
        names = zip(running(model).values(), running(expected).values(), strict=True)
        for own, theirs in names:
            mean = own.clone()
            dist.all_reduce(mean)
            torch.testing.assert_close(mean / RANKS, theirs, rtol=0, atol=1e-9)
    query_means, key_means = (all_gather_rows(mean) for mean in statistics({}, rank, RANKS))
    torch.testing.assert_close(query_means, means_alone[0])
    torch.testing.assert_close(key_means, means_alone[1])
    assert (query_means - key_means).abs().max() > 1e-3, "the keys were normalised in the queries' company"
    differing(model, rank)
    dist.barrier()
    if rank == 0:
        print("ok")
    dist.destroy_process_group()


def differing(model, rank):
    with torch.no_grad():
        if rank == RANKS - 1:
            weight = model.encoder.backbone.layer1[0].conv1.weight
            weight[1, 2, 0, 0] = torch.nextafter(weight[1, 2, 0, 0], torch.tensor(9.0))
    name = "query_encoder.backbone.layer1.0.conv1.weight"
    try:
        check_agreement(model.shared(), 300)
    except TrainingError as error:
        assert f"{name} on rank {RANKS - 1} differs from rank 0 at step 300" in str(error), error
        assert "1 of " in str(error), error
    else:
        raise AssertionError("a differing weight was not found")


main()
