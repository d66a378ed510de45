"""Loss and gradient of one step with the queue's keys in bfloat16, against the exact keys in float64.

    python benchmarks/queue_rounding.py [--n 256] [--k 65536] [--d 128] [--json OUT]

Keys are unit vectors: independent ones, or scattered about a common direction, as a collapsing encoder makes them. The
positive of each query is near it. The errors of float32 keys stand beside, as a measure of what is rounding anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from _command import script
from _environment import environment
from _results import show, write_json
from fastmoco.flags import at_least
from fastmoco.kernels import infonce, reference
from fastmoco.model.dictionary import Queue


@dataclass(frozen=True)
class Args:
    """Errors of loss and gradient by the dtype of the queue's keys."""

    n: int = 256
    """Queries."""
    k: int = 65_536
    """Keys of the queue."""
    d: int = 128
    """Dimensions of a key."""
    json: Path | None = None
    """File for the rows and the environment."""


def run(args: Args) -> None:
    """Compute each case with keys of each dtype, print the errors, and write the rows."""
    at_least(1, args, "n", "k", "d")
    rows = [
        show(row)
        for spread in ("independent", "clustered")
        for temperature in (0.07, 0.2)  # of MoCo v1 and v2
        for row in errors(args, spread, temperature)
    ]
    if args.json:
        write_json(args.json, {"environment": environment(), "rows": rows})


def errors(args: Args, spread: str, temperature: float) -> list[dict[str, Any]]:
    """A row for each dtype."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(rows, args.d, generator=generator, dtype=torch.float64) for rows in (args.n, args.n, args.k)]
    if spread == "clustered":
        drawn = [each + 1.0 for each in drawn]
    query, other, stored = (F.normalize(each, dim=1) for each in drawn)
    key = F.normalize(query + 0.5 * other, dim=1)
    expected, gradient = _exact(query, key, stored, temperature)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        queue = Queue(args.k, args.d, dtype=dtype)
        queue.enqueue(stored)
        ours = query.float().requires_grad_()
        loss = infonce(ours, key.float(), queue.negatives(), temperature)[0]
        loss.mean().backward()
        assert ours.grad is not None
        row = {"keys": str(dtype).removeprefix("torch."), "spread": spread, "temperature": temperature}
        row |= {"n": args.n, "k": args.k, "d": args.d, "loss": round(expected.mean().item(), 4)}
        difference = loss.detach().double() - expected
        row |= {"mean_loss_error": difference.mean().abs().item(), "largest_loss_error": difference.abs().max().item()}
        row["gradient_error"] = ((ours.grad - gradient).norm() / gradient.norm()).item()
        rows.append({name: float(f"{x:.2g}") if name.endswith("error") else x for name, x in row.items()})
    return rows


def _exact(
    query: torch.Tensor, key: torch.Tensor, stored: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradient of their mean, in float64, sixteen queries at a time because all logits would be large."""
    leaf, losses = query.clone().requires_grad_(), []
    for part, positive in zip(leaf.split(16), key.split(16), strict=True):
        loss = reference.infonce(part, positive, stored, temperature)[0]
        (loss.sum() / len(query)).backward()
        losses.append(loss.detach())
    assert leaf.grad is not None
    return torch.cat(losses), leaf.grad


if __name__ == "__main__":
    script(Args, run)
