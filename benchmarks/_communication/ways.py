"""Ways to shuffle the keys' images over the ranks, and the bytes that each transfers.

B: images per rank, W: ranks, N = W·B, D: feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from fastmoco.model.shuffle_bn import exchange, gather_unshuffled, permutation
from fastmoco.ranks.exchange import ALL_GATHER

# the papers' dimension
FEATURES = 128
Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Way:
    """One way to shuffle.

    Attributes:
        label: name in the table and the chart.
        dtype: type of the transferred images.
        keys: function of a rank's images [B, 3, H, W], an encoder and the step; returns all ranks' keys [N, D].
    """

    label: str
    dtype: torch.dtype
    keys: Callable[[torch.Tensor, Encode, int], torch.Tensor]

    def formula(self, ranks: int, batch: int, pixels: int) -> dict[str, int]:
        """Bytes that collectives deliver to a rank in a step, including the rank's own share.

        Args:
            ranks: number of ranks.
            batch: images per rank.
            pixels: side of an image.
        """
        image = 3 * pixels**2 * self.dtype.itemsize
        everywhere = ranks * batch
        features = everywhere * FEATURES * torch.float32.itemsize
        if self.keys is ours:
            return {"images": batch * image, "index": 0, "features": features}
        index = everywhere * torch.int64.itemsize
        return {"images": everywhere * image, "index": index, "features": 2 * features}


def ours(images: torch.Tensor, encode: Encode, step: int) -> torch.Tensor:
    """fastmoco: one all-to-all of images, and one all-gather of features, which also provides the queue's keys."""
    ranks = dist.get_world_size()
    permutation_N = permutation(0, step, ranks * len(images), ranks)
    return gather_unshuffled(encode(exchange(images, permutation_N)), permutation_N)


def original(images: torch.Tensor, encode: Encode, step: int) -> torch.Tensor:
    """The original implementation: an all-gather of images to every rank, and the index broadcast from rank 0.

    Features are gathered twice: to restore their order, and for the queue.
    """
    rank, ranks, batch = dist.get_rank(), dist.get_world_size(), len(images)
    everything = _gathered(images)
    index_N = torch.randperm(ranks * batch, generator=torch.Generator().manual_seed(step))
    dist.broadcast(index_N, src=0)
    features = encode(everything[index_N.view(ranks, batch)[rank]])
    back = torch.argsort(index_N).view(ranks, batch)[rank]
    return _gathered(_gathered(features)[back])


def _gathered(rows: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


WAYS = {
    "bf16": Way("all-to-all, bf16", torch.bfloat16, ours),
    "fp32": Way("all-to-all, float32", torch.float32, ours),
    "original": Way("all-gather, float32 (original MoCo)", torch.float32, original),
}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the bytes that collectives deliver to this rank within the block: images, index, features."""
    bytes_of = {"images": 0, "index": 0, "features": 0}

    def count(what: torch.Tensor, size: int) -> None:
        features = what.dim() == 2 and what.shape[1] == FEATURES  # images of 128 pixels end in that number, too
        kind = "index" if what.dtype is torch.int64 else "features" if features else "images"
        bytes_of[kind] += size

    def all_to_all(output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        count(output, output.nbytes)
        return calls[0](output, *arguments, **options)

    def all_gather_into(output: torch.Tensor, rows: torch.Tensor) -> None:
        calls[1](output, rows)
        count(rows, output.nbytes)

    def all_gather(outputs: list[torch.Tensor], rows: torch.Tensor) -> None:
        calls[2](outputs, rows)
        count(rows, sum(output.nbytes for output in outputs))

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        calls[3](tensor, src=src)
        count(tensor, tensor.nbytes)

    names = ("all_to_all_single", ALL_GATHER, "all_gather", "broadcast")
    calls = [getattr(dist, name) for name in names]
    counting = dict(zip(names, (all_to_all, all_gather_into, all_gather, broadcast), strict=True))
    with mock.patch.multiple(dist, **counting):
        yield bytes_of
