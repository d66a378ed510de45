"""Ways to shuffle the keys' images over the ranks, and the bytes that they cost.

B: images of a rank, W: ranks, N = W·B, D: feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from fastmoco.distributed import ALL_GATHER
from fastmoco.model.shuffle_bn import exchange, gather_unshuffled, permutation

FEATURES = 128
Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Way:
    """A way to shuffle.

    Attributes:
        label: for the table and the chart.
        dtype: of the images that travel.
        keys: from a rank's images [B, 3, H, W], an encoder and the step to the keys of all ranks [N, D].
    """

    label: str
    dtype: torch.dtype
    keys: Callable[[torch.Tensor, Encode, int], torch.Tensor]

    def formula(self, ranks: int, batch: int, pixels: int) -> dict[str, int]:
        """Bytes that the collectives deliver to a rank in a step; what a rank has itself and gets back counts too.

        Args:
            ranks: number of ranks.
            batch: images of a rank.
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
    """fastmoco's: one all-to-all of images, one all-gather of features that also gives the queue its keys."""
    permutation_N = permutation(0, step, dist.get_world_size() * len(images))
    return gather_unshuffled(encode(exchange(images, permutation_N)), permutation_N)


def original(images: torch.Tensor, encode: Encode, step: int) -> torch.Tensor:
    """The original implementation's: all ranks' images to every rank, and the index from rank 0.

    Features are gathered once to put them back in order, and once more for the queue.
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
    "original": Way("all-gather, float32 (the original's)", torch.float32, original),
}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the bytes that collectives deliver to this rank meanwhile: of images, the index, and features."""
    bytes_of = {"images": 0, "index": 0, "features": 0}

    def count(what: torch.Tensor, size: int) -> None:
        kind = "index" if what.dtype is torch.int64 else "features" if what.shape[-1] == FEATURES else "images"
        bytes_of[kind] += size

    def all_to_all(output: torch.Tensor, *arguments: Any) -> None:
        calls[0](output, *arguments)
        count(output, output.nbytes)

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
