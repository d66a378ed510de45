"""Projection heads: from pooled features to the features that are contrasted."""

from __future__ import annotations

from torch import nn


def projection_head(kind: str, in_dim: int, out_dim: int) -> nn.Module:
    """The head of MoCo v1 or v2.

    Args:
        kind: `linear`, one fully connected layer (arXiv 1911.05722, section 3.3), or `mlp`, two layers with ReLU
            and a hidden layer as wide as the input (arXiv 2003.04297, section 3).
        in_dim: Dimension of the pooled features.
        out_dim: Dimension D of the contrasted features.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind == "linear":
        return nn.Linear(in_dim, out_dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(inplace=True), nn.Linear(in_dim, out_dim))
    raise ValueError(f"unknown head {kind!r}; known: linear, mlp")
