"""Check that all ranks hold the same model: hashes computed on the device, compared by one small all-gather."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from fastmoco.ranks.exchange import all_gather_rows
from fastmoco.runs.errors import TrainingError
from fastmoco.runs.resumable import Resumable

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio's bits, as a signed number
_CHUNK = 1 << 22


class RanksDiffer(TrainingError):
    """Ranks do not hold the same model."""


def agree(run: Resumable, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare every tensor with rank 0's; where one differs, set the checkpoints aside that are no longer sure.

    Rank 0 wrote them, and its state may be the wrong one. Without this, a restart would continue from the newest, and
    all ranks would agree on it.

    Args:
        run: the run.
        tensors: what must be equal on all ranks, by name; the same names on all ranks.

    Raises:
        RanksDiffer: on all ranks, naming the first tensor that differs, where, and from where to continue.
    """
    try:
        check_agreement(tensors, run.step)
    except RanksDiffer as error:
        raise RanksDiffer(f"{error}. Fix the cause; {run.set_unsure_aside()}") from error
    run.agreed_step = run.step


def check_agreement(tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Compare every tensor with rank 0's, bit for bit up to the hash.

    Args:
        tensors: what must be equal on all ranks, by name; the same names on all ranks.
        step: number of steps done.

    Raises:
        RanksDiffer: on all ranks, naming the first tensor that differs, and where.
    """
    if not dist.is_initialized():
        return
    hashes_WT = all_gather_rows(torch.stack([fingerprint(tensor) for tensor in tensors.values()])[None])
    different_WT = (hashes_WT != hashes_WT[0]).cpu()
    if not different_WT.any():
        return
    rank, place = different_WT.nonzero()[0].tolist()
    name, count = list(tensors)[place], int(different_WT.any(0).sum())
    raise RanksDiffer(
        f"{name} on rank {rank} differs from rank 0 at step {step}, as do {count} of {len(tensors)} tensors that must "
        f"be equal on all ranks; a device, its memory or the network is faulty, or ranks run different software"
    )


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """A hash of a tensor's bits, int64, a scalar on its device.

    It is the sum of each element's bits times an odd number that depends on its position, modulo 2⁶⁴. An odd factor is
    invertible, so a change in one element always changes the sum; exchanging two different ones does in all but rare
    cases.
    """
    bits = tensor.detach().flatten().view(_INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, part in enumerate(bits.split(_CHUNK)):  # bounds the int64 temporaries
        places = torch.arange(number * _CHUNK, number * _CHUNK + len(part), device=tensor.device)
        total += (part.to(torch.int64) * (2 * places + 1).mul_(_ODD)).sum()
    return total
