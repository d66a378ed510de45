"""Shuffled BatchNorm (arXiv 1911.05722, section 3.3): a query and its key are normalised in different batches.

Otherwise the statistics of their common batch would identify the key, and the loss would fall without learning. Every
rank derives the same permutation from (seed, step), so no index is broadcast. One all-to-all moves the images: a rank
receives B images for any number of ranks, where the original code gathers all N. Features return with the all-gather
that the queue needs anyway.

B: images of a rank, W: ranks, N = W·B.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from fastmoco.distributed import all_gather_rows, rank_and_size, to_device

_STREAM = 0x5BF  # keeps these draws apart from the memory bank's of the same seed and step


def permutation(seed: int, step: int, count: int) -> torch.Tensor:
    """The permutation of the global batch at a step: int64 [N] on the CPU, equal on all ranks."""
    return torch.from_numpy(np.random.Generator(np.random.Philox([seed, step, _STREAM, 0])).permutation(count))


def exchange(images: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Permute the global batch: slot j receives image `permutation_N[j]`.

    Args:
        images: This rank's images [B, 3, H, W], rows rank·B … rank·B + B − 1 of the global batch.
        permutation_N: int64 [N] on the CPU.

    Returns:
        [B, 3, H, W] with channels-last strides: the images in this rank's slots.
    """
    rank, world_size = rank_and_size()
    batch = images.shape[0]
    source = permutation_N.view(world_size, batch)
    wanted = source[rank]
    mine = [row[row // batch == rank] - rank * batch for row in source]  # rows to send to each rank
    nhwc = images.permute(0, 2, 3, 1)
    rows = nhwc.flatten(1)[to_device(torch.cat(mine), images.device)]
    if world_size == 1:
        return rows.view(nhwc.shape).permute(0, 3, 1, 2)
    sent = rows.view(torch.uint8)  # bytes: every backend sends them, not every dtype
    received = torch.empty_like(sent)
    counts = torch.bincount(wanted // batch, minlength=world_size).tolist()
    dist.all_to_all_single(received, sent, counts, [len(part) for part in mine])
    # images arrive ordered by sender, then by slot; the inverse of that order puts each into its slot
    slots = torch.argsort(torch.argsort(wanted // batch, stable=True))
    restored = received[to_device(slots, images.device)].view(images.dtype).view(nhwc.shape)
    return restored.permute(0, 3, 1, 2)


def gather_unshuffled(features_BD: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Features of all ranks in the order before the exchange.

    Args:
        features_BD: [B, D], of the images that `exchange` returned on this rank.
        permutation_N: The permutation passed to `exchange`.

    Returns:
        [N, D]; rows rank·B … rank·B + B − 1 are this rank's own images.
    """
    shuffled_ND = all_gather_rows(features_BD)
    return shuffled_ND[to_device(torch.argsort(permutation_N), features_BD.device)]
