"""A step in micro-batches (`--accumulate`): their activations are in memory one after the other.

It equals one step of the whole batch with as many more BatchNorm groups (`--bn-splits`), to rounding: all queries are
contrasted with the dictionary of before the step, all keys are stored at its end, and the gradients are averaged.

With the keys of the batch as dictionary, all keys of the step are there before the first backward pass, and have no
gradient: the loss is a sum over the queries, so each part's gradient is that of the whole batch. The second forward
pass of gradient caching (arXiv 2101.06983), for losses with gradients for keys, is not needed.

B: images of a rank, N: images of all ranks, D: feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel

from fastmoco.model.batchnorm import from_equal_statistics
from fastmoco.model.moco import Contrast, MoCo, unit
from fastmoco.spans import span


def accumulate(
    model: MoCo,
    query: torch.Tensor,
    key: torch.Tensor,
    ids: torch.Tensor,
    step: int,
    momentum_key: float,
    backward: Callable[[torch.Tensor], None],
) -> Contrast:
    """`MoCo.forward` in `--accumulate` parts, each with its backward pass.

    Args:
        model: Not end to end: there the gradients of all keys would be needed at once.
        query: Views [B, C, H, W]; the number of micro-batches divides B.
        key: Other views of the same images [B, C, H, W].
        ids: Sample ids, int64 [B]; only the memory bank uses them.
        step: Number of this step in the run.
        momentum_key: Momentum m of the key encoder at this step.
        backward: Called with each part's share of the loss; adds to the gradients.

    Returns:
        The figures of the whole batch, without gradient.
    """
    views, starts = model.start(query, key, step)
    batch, count = model.batch(ids, step, query.device), model.config.accumulate
    encoder, size = model.query_encoder, len(query) // count
    # the memory bank contrasts with its entries; the features that it stores are those of all queries
    banked = model.key_encoder is None
    queries, contrasts, keys = [], [], []
    for number, view in enumerate(views):
        for place, part in enumerate(from_equal_statistics(model.encoder, view.chunk(count))):
            last = number == len(views) - 1 and place == count - 1
            # the ranks average the sum of the gradients, once
            with encoder.no_sync() if isinstance(encoder, DistributedDataParallel) and not last else nullcontext():
                with span("query forward"):
                    query_BD = unit(encoder(part))
                if not (keys or banked):  # after the first queries: key images travel between the ranks meanwhile
                    keys = model.keys(starts, (), momentum_key)
                first = batch.own.start + place * size
                part_of = replace(batch, own=slice(first, first + size))
                loss, hit = model.contrast(query_BD, query_BD.detach() if banked else keys[number], part_of)
                backward(loss.mean() * model.config.loss_scale / (count * len(views)))
            queries.append(query_BD.detach())
            contrasts.append((loss.detach(), hit))
    if banked:
        keys = model.keys((), [torch.cat(queries)], momentum_key)
    return model.finish(keys, contrasts, batch)
