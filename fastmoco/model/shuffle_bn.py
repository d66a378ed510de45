"""Shuffled BatchNorm (arXiv 1911.05722, section 3.3): a query and its key are normalised in different batches.

Otherwise the statistics of their common batch would identify the key, and the loss would fall without learning. Every
rank derives the same permutation from (seed, step), so no index is broadcast. One all-to-all moves the images: a rank
receives B images for any number of ranks, where the original code gathers all N. Features return with the all-gather
that the queue needs anyway.

B: images of a rank, W: ranks, N = W·B; G: BatchNorm groups of all ranks, a multiple of W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.distributed as dist

from fastmoco.devices import to_device
from fastmoco.ranks.exchange import all_gather_rows
from fastmoco.ranks.world import rank_and_size

_STREAM = 0x5BF  # keeps these draws apart from the memory bank's of the same seed and step


def permutation(seed: int, step: int, count: int, groups: int) -> torch.Tensor:
    """The permutation of the global batch at a step: int64 [N] on the CPU, equal on all ranks.

    Each BatchNorm group of keys gets equally many images of every group of queries: N/G², or where G² does not divide
    N, that rounded down or up. Which images these are is random, how many is the same at every step, so that messages
    between ranks keep their sizes. The original code permutes the global batch freely, and these numbers vary. Within a
    group, images are ordered by where they come from; BatchNorm does not depend on their order.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        count: N.
        groups: G, which divides N.
    """
    draws = np.random.Generator(np.random.Philox([seed, step, _STREAM, 0]))
    shuffled_GB = draws.permuted(np.arange(count).reshape(groups, -1), axis=1)
    return torch.from_numpy(shuffled_GB.ravel()[_deal(count, groups)])


@lru_cache(maxsize=8)
def _deal(count: int, groups: int) -> np.ndarray:
    """Places [N] in groups of origin, in the order of the groups that they are dealt to."""
    sender_G1, place_1B = np.arange(groups)[:, None], np.arange(count // groups)[None]
    # one after the other to the groups behind the sender's, and to its own last: where images do not suffice for all,
    # it gets none
    receiver_N = ((sender_G1 + place_1B + 1) % groups).ravel()
    return np.argsort(receiver_N, kind="stable")


def start_exchange(images: torch.Tensor, permutation_N: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start to permute the global batch: slot j receives image `permutation_N[j]`.

    Args:
        images: This rank's images [B, C, H, W], rows rank·B … rank·B + B − 1 of the global batch.
        permutation_N: int64 [N] on the CPU.

    Returns:
        A function that waits for the images (on a GPU the device waits, not the host) and returns those in this rank's
        slots: [B, C, H, W] with channels-last strides.
    """
    rank, world_size = rank_and_size()
    batch = images.shape[0]
    source = permutation_N.numpy()
    sender = source // batch
    mine_N = sender == rank
    nhwc = images.permute(0, 2, 3, 1)
    # in the order of the slots, thus of the ranks that own them
    rows = nhwc.flatten(1)[to_device(torch.from_numpy(source[mine_N] - rank * batch), images.device)]
    if world_size == 1:
        return lambda: rows.view(nhwc.shape).permute(0, 3, 1, 2)
    wanted_B = sender[rank * batch : (rank + 1) * batch]
    sent = rows.view(torch.uint8)  # bytes: every backend sends them, not every dtype
    received = torch.empty_like(sent)
    arriving, leaving = np.bincount(wanted_B, minlength=world_size), mine_N.reshape(world_size, batch).sum(1)
    work = dist.all_to_all_single(received, sent, arriving.tolist(), leaving.tolist(), async_op=True)
    assert work is not None

    def wait() -> torch.Tensor:
        work.wait()
        placed = received
        # images arrive ordered by sender, then by slot; with one BatchNorm group a rank, that is the order of the slots
        if (np.diff(wanted_B) < 0).any():
            slots_B = np.argsort(np.argsort(wanted_B, kind="stable"))
            placed = received[to_device(torch.from_numpy(slots_B), images.device)]
        return placed.view(images.dtype).view(nhwc.shape).permute(0, 3, 1, 2)

    return wait


def exchange(images: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Permute the global batch and wait for it; see `start_exchange`."""
    return start_exchange(images, permutation_N)()


def gather_unshuffled(features_BD: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Features of all ranks in the order before the exchange.

    Args:
        features_BD: [B, D], of the images that `exchange` returned on this rank.
        permutation_N: The permutation passed to `exchange`.

    Returns:
        [N, D]; rows rank·B … rank·B + B − 1 are this rank's own images.
    """
    shuffled_ND = all_gather_rows(features_BD)
    slots_N = torch.empty_like(permutation_N)
    slots_N[permutation_N] = torch.arange(len(permutation_N))
    return shuffled_ND[to_device(slots_N, features_BD.device)]
