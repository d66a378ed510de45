"""Projection heads: from pooled features to the features that are contrasted."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def projection_head(kind: str, in_dim: int, out_dim: int, layers: int = 2, width: int = 4096) -> nn.Module:
    """The head of MoCo v1, v2 or v3.

    Args:
        kind: `linear`, one fully connected layer (arXiv 1911.05722, section 3.3); `mlp`, two layers with ReLU and a
            hidden layer as wide as the input (arXiv 2003.04297, section 3); or `mlp-bn`, with BatchNorm after every
            layer, of which the last has no weight and bias (arXiv 2104.02057, section 4.1).
        in_dim: Dimension of the pooled features.
        out_dim: Dimension D of the contrasted features.
        layers: Layers of `mlp-bn`.
        width: Dimension of its hidden layers.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind == "linear":
        return nn.Linear(in_dim, out_dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(inplace=True), nn.Linear(in_dim, out_dim))
    if kind == "mlp-bn":
        return _with_batchnorm([in_dim] + [width] * (layers - 1) + [out_dim], after_last=True)
    raise ValueError(f"unknown head {kind!r}; known: linear, mlp, mlp-bn")


def prediction_head(kind: str, dim: int, width: int = 4096) -> nn.Module | None:
    """The head that predicts a key from a query's projection, both of `dim` dimensions (arXiv 2104.02057, section 4.1).

    Args:
        kind: `none`; `mlp`, two layers with BatchNorm and ReLU between them; or `mlp-bn`, with BatchNorm after the
            last one, too, without weight and bias.
        dim: Dimension D of the contrasted features.
        width: Dimension of the hidden layer.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind == "none":
        return None
    if kind in ("mlp", "mlp-bn"):
        return _with_batchnorm([dim, width, dim], after_last=kind == "mlp-bn")
    raise ValueError(f"unknown predictor {kind!r}; known: none, mlp, mlp-bn")


def _with_batchnorm(dims: list[int], after_last: bool) -> nn.Sequential:
    """Layers without bias, which BatchNorm would remove, each followed by BatchNorm and all but the last by ReLU."""
    modules: list[nn.Module] = []
    for before, after in pairwise(dims[:-1]):
        modules += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    modules.append(nn.Linear(dims[-2], dims[-1], bias=False))
    if after_last:
        modules.append(nn.BatchNorm1d(dims[-1], affine=False))
    return nn.Sequential(*modules)
