"""Shuffled BatchNorm (arXiv 1911.05722, section 3.3): keys are normalised in other company than queries.

Every rank derives the same permutation from (seed, step), so no index is broadcast. Images travel by one
all-to-all, so that a rank receives B images whatever the number of ranks; features come back with the
all-gather that the queue needs anyway.

B: images of a rank, W: ranks, N = W·B.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from fastmoco.distributed import all_gather_rows, rank_and_size, to_device

_STREAM = 0x5BF


def permutation(seed: int, step: int, count: int) -> torch.Tensor:
    """The permutation of the global batch at a step: int64 [N] on the CPU, equal on all ranks."""
    return torch.from_numpy(np.random.Generator(np.random.Philox([seed, step, _STREAM, 0])).permutation(count))


def exchange(images: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Deal the global batch out anew: slot j of it takes the image that was at `permutation_N[j]`.

    Args:
        images: this rank's images [B, 3, H, W], rows rank·B … rank·B + B − 1 of the global batch.
        permutation_N: int64 [N] on the CPU.

    Returns:
        [B, 3, H, W] with channels-last strides: the images of this rank's slots.
    """
    rank, world_size = rank_and_size()
    batch = images.shape[0]
    source = permutation_N.view(world_size, batch)
    wanted = source[rank]
    mine = [row[row // batch == rank] - rank * batch for row in source]
    nhwc = images.permute(0, 2, 3, 1)
    rows = nhwc.flatten(1)[to_device(torch.cat(mine), images.device)]
    if world_size == 1:
        return rows.view(nhwc.shape).permute(0, 3, 1, 2)
    sent = rows.view(torch.uint8)
    received = torch.empty_like(sent)
    counts = torch.bincount(wanted // batch, minlength=world_size).tolist()
    dist.all_to_all_single(received, sent, counts, [len(part) for part in mine])
    slots = torch.argsort(torch.argsort(wanted // batch, stable=True))
    restored = received[to_device(slots, images.device)].view(images.dtype).view(nhwc.shape)
    return restored.permute(0, 3, 1, 2)


def gather_unshuffled(features_BD: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Features of all ranks in the order before the exchange.

    Args:
        features_BD: [B, D], of the images that `exchange` gave this rank.
        permutation_N: the permutation given to `exchange`.

    Returns:
        [N, D]; this rank's own images are rows rank·B … rank·B + B − 1.
    """
    shuffled_ND = all_gather_rows(features_BD)
    return shuffled_ND[to_device(torch.argsort(permutation_N), features_BD.device)]
