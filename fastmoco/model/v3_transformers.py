"""How the vision transformers of MoCo v3 (arXiv 2104.02057) are initialised."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def begin(net: Any) -> None:
    """Initialise a transformer of timm as MoCo v3 does (arXiv 2104.02057, section 4 and its code).

    Positions are fixed, in two dimensions of sines and cosines; the projection of patches stays at its random weights
    ("random patch projection"), which keeps training stable. Matrices are uniform as of Glorot and Bengio, those of
    queries, keys and values each for itself; biases are zero.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            outputs, inputs = module.weight.shape
            _uniform(module.weight, inputs + (outputs // 3 if name.endswith("qkv") else outputs))
            nn.init.zeros_(module.bias)
    nn.init.normal_(net.cls_token, std=1e-6)
    projection = net.patch_embed.proj
    _uniform(projection.weight, projection.weight[0].numel() + net.embed_dim)
    nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)
    rows, columns = net.patch_embed.grid_size
    with torch.no_grad():
        net.pos_embed.copy_(positions(rows, columns, net.embed_dim))
    net.pos_embed.requires_grad_(False)


def _uniform(weight: torch.Tensor, fans: int) -> None:
    bound = math.sqrt(6 / fans)
    nn.init.uniform_(weight, -bound, bound)


def positions(rows: int, columns: int, dim: int) -> torch.Tensor:
    """Position embeddings of sines and cosines, float32 [1, 1 + rows × columns, D]; zeros for the class token.

    A quarter of the dimensions each has the sines and cosines of the row, then of the column, at D / 4 frequencies from
    1 down to nearly 1 / 10,000 (arXiv 1706.03762, section 3.5, for each of the two directions).
    """
    frequencies = 10_000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    row, column = (torch.outer(torch.arange(count).float(), frequencies) for count in (rows, columns))
    of_rows = torch.cat([row.sin(), row.cos()], 1)[:, None].expand(-1, columns, -1)
    of_columns = torch.cat([column.sin(), column.cos()], 1)[None].expand(rows, -1, -1)
    of_patches = torch.cat([of_rows, of_columns], 2).reshape(1, rows * columns, dim)
    return torch.cat([torch.zeros(1, 1, dim), of_patches], 1)
