"""A supervised encoder to compare MoCo's with, or an untrained one, as a torchvision state dictionary.

    PYTHONPATH=benchmarks python -m _learning.supervised supervised|untrained FOLDER [flags of fastmoco train]

Settings that both trainings share come from the same flags: encoder, view size, batch, length, schedule, weight decay,
seed. Crops and flips are those of the linear probe. Runs in one process; an interrupted run restarts. Writes
FOLDER/encoder.pt, and the settings to FOLDER/config.json.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.config import Config
from fastmoco.devices import autocast_dtype
from fastmoco.layouts.files import write_tensors
from fastmoco.model.encoders import Backbone, backbone
from fastmoco.probes.sets import LabelledSets
from fastmoco.runs.log import set_up_logging
from fastmoco.train import parse
from fastmoco.trainer.schedule import lr_at
from pipelines import LabelledCrops, ViewSpec
from shards.storage.files import write_whole

log = logging.getLogger(__name__)


def main() -> None:
    """Make the encoder that the command line describes, and save it."""
    kind, folder, *flags = sys.argv[1:]
    set_up_logging()
    config = parse(flags)
    out = Path(folder)
    write_whole(out / "config.json", (json.dumps(config.to_dict(), indent=1) + "\n").encode())
    torch.manual_seed(config.seed)
    encoder = backbone(config.arch, config.zero_init_residual)
    # as MoCo's encoders run
    encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if kind == "supervised":
        train(encoder, config)
    write_tensors(out / "encoder.pt", encoder.state_dict(), {})


def train(encoder: Backbone, config: Config) -> None:
    """Train an encoder and a classifier on its pooled features, by SGD on the cross-entropy.

    Args:
        encoder: trained in place.
        config: settings; `shards` is the training set, and `knn_val` is only used to number the classes.
    """
    assert config.knn_val is not None  # learning.py always sets it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sets = LabelledSets(config.sets[0], config.knn_val)
    crops = LabelledCrops(
        sets.train, ViewSpec.probe(config.image_size), global_batch=config.batch_size, seed=config.seed,
        device=device, ids=sets.train_ids, options=config,
    )  # fmt: skip
    model = nn.Sequential(encoder, nn.Linear(encoder.out_dim, sets.classes)).to(device).train()
    # lr=0.0, because the schedule sets the rate before every step
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    dtype, steps = autocast_dtype(config.precision, device), crops.steps_per_epoch
    total = config.total_steps(steps)
    for step in range(total):
        if step % steps == 0:
            batches = crops.epoch(step // steps)
        batch = next(batches)  # pyright: ignore[reportPossiblyUnboundVariable]
        for group in optimiser.param_groups:
            group["lr"] = lr_at(config, step, total)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            scores = model(batch.images)
        # in float32: bf16 has too few digits for a sum of exponentials
        loss = F.cross_entropy(scores.float(), batch.labels)
        loss.backward()
        optimiser.step()
        if (step + 1) % steps == 0 or step + 1 == total:
            log.info("step %d of %d: loss %.4f", step + 1, total, loss.item())


if __name__ == "__main__":
    main()
