"""Exchange of tensors between the ranks, with gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist

ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
"""Name in torch.distributed of gathering all ranks' tensors into one; torch 2.14 warns about the older one."""


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        gathered = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
        getattr(dist, ALL_GATHER)(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad):
        # the loss of every rank depends on these rows, so their gradient is the sum over ranks, not this rank's part
        parts = list(grad.contiguous().chunk(dist.get_world_size()))
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        # every rank's loss depends on the sum, so each part's gradient is the sum over ranks; by the same function,
        # which can be differentiated again
        return _SumOverRanks.apply(grad)


def all_gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all ranks in rank order. Every rank must have the same number of rows.

    The gradient of this rank's rows is summed over the losses of all ranks.

    Args:
        rows: [B, ...], the same shape on every rank.

    Returns:
        [world size · B, ...]; without a process group, `rows` itself.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, of tensors of equal shape; gradients are summed over the ranks as well."""
    return _SumOverRanks.apply(values) if dist.is_initialized() else values


def all_gather_uneven(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all ranks in rank order. The number of rows may differ between ranks.

    Args:
        rows: [B_r, ...] on rank r; the trailing shape is the same on all ranks.
    """
    if not dist.is_initialized():
        return rows
    counts = all_gather_rows(torch.tensor([[len(rows)]], device=rows.device)).flatten().tolist()
    # gathering into one tensor needs equal shapes
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = all_gather_rows(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Copy rank 0's buffers (BatchNorm's running statistics) to all ranks, so that all evaluate the same model."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
