"""The product's Triton kernels as it launches them, compiled for a GPU of any architecture."""

from __future__ import annotations

from pathlib import Path

import torch

from _ptxas import Compiled, by_name, compiled
from fastmoco.kernels import batchnorm_kernels, batchnorm_triton, enqueue_triton, infonce_triton
from pipelines.kernels import colours_triton

_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def walk(dtype: torch.dtype, dim: int, capability: int, folder: Path) -> Compiled:
    """The loss kernel for keys of a dtype, as `infonce_triton.forward` launches it."""
    tl = infonce_triton.tl
    options = infonce_triton.tiles(dim, dtype, divmod(capability, 10))
    constants = {name: value for name, value in options.items() if name.isupper()}
    constants |= {"PARTS": infonce_triton.parts(dtype), "HALF": tl.bfloat16}
    types = ["*fp32", _NAMES[dtype], "*fp32", "*fp32", "*fp32", "fp32", "i32", "i32", "i32", "i32"]
    launch = {name: value for name, value in options.items() if name.islower()}
    return _in_order(infonce_triton.walk_kernel, types, constants, capability, folder, **launch)


def combine(dim: int, capability: int, folder: Path) -> Compiled:
    """The kernel that joins the stretches of the dictionary."""
    types = [*["*fp32"] * 6, "*i1", "*fp32", "fp32", "fp32", "i32", "i32", "i32"]
    constants = {"BLOCK_S": infonce_triton.COMBINED_S, "BLOCK_D": dim}
    return _in_order(infonce_triton.combine_kernel, types, constants, capability, folder)


def enqueue(dtype: torch.dtype, dim: int, capability: int, folder: Path) -> Compiled:
    """The queue's update by float32 keys."""
    types = [_NAMES[dtype], "*i64", "*i64", "*i32", "*fp32", "i32", "i32", "i32", "i32"]
    constants = {"ROWS": enqueue_triton.ELEMENTS // dim, "BLOCK_D": dim}
    return _in_order(enqueue_triton.write_kernel, types, constants, capability, folder)


_NUMBERS = dict.fromkeys(("R", "S", "G", "C", "TILE"), "i32") | dict.fromkeys(("epsilon", "momentum", "count"), "fp32")
_FLOATS = ("moments", "weight", "bias", "parts", "sums", "grad_weight", "grad_bias", "running_mean", "running_var")
BATCH_NORM = {
    "statistics": ("x",),
    "normalise": ("x", "residual", "y"),
    "gradient_sums": ("grad", "x", "y", "masked"),
    "input_gradient": ("grad", "x", "out"),
    "combine": (),
    "fold": (),
}
"""The kernels of the grouped BatchNorm, and those of their arguments that have the dtype of the images."""


def batch_norm(name: str, dtype: torch.dtype, capability: int, folder: Path) -> Compiled:
    """A kernel of the grouped BatchNorm with a residual and ReLU, for any multiple of 16 channels from 64."""
    images = BATCH_NORM[name]
    kernel = getattr(batchnorm_kernels, f"{name}_kernel")
    types = _NUMBERS | dict.fromkeys(_FLOATS, "*fp32") | dict.fromkeys(images, _NAMES[dtype])
    if not images:
        types |= {"out": "*fp32", "tracked": "*i64"}
        tiles = {"BLOCK_S": batchnorm_triton.COMBINED_S, "BLOCK_C": batchnorm_triton.COMBINED_C}
    else:
        sums = name in ("statistics", "gradient_sums")
        elements = batchnorm_triton.SUMMED_ELEMENTS if sums else batchnorm_triton.ELEMENTS
        tiles = batchnorm_triton._tiles(64, elements)
    constants = tiles | {"RELU": True, "FINISH": True}
    types = {argument: kind for argument, kind in types.items() if argument in kernel.arg_names}
    # as PyTorch allocates tensors
    divisible = ["C", *(argument for argument, kind in types.items() if kind[0] == "*")]
    return compiled(kernel, types, constants, capability, folder, divisible=divisible)


def colours(dtype: torch.dtype, capability: int, folder: Path, solarize: bool = False) -> Compiled:
    """The colours of both views, from levels to a dtype; or of views of which some are solarized."""
    types = ["*u8", "*u8", _NAMES[dtype], _NAMES[dtype], "*fp32", *["fp32"] * 6, "i32"]
    constants = {"BLOCK": colours_triton.OPTIONS["BLOCK"], "SOLARIZE": solarize}
    warps = colours_triton.OPTIONS["num_warps"]
    return _in_order(colours_triton.colours_kernel, types, constants, capability, folder, num_warps=warps)


def _in_order(kernel, types, constants, capability: int, folder: Path, **options) -> Compiled:
    """`compiled`, with the types of the arguments in their order. Tensors and sizes are multiples of 16."""
    named = by_name(kernel, types, constants)
    divisible = [argument for argument, kind in named.items() if kind not in ("fp32", "i1")]
    return compiled(kernel, named, constants, capability, folder, divisible=divisible, **options)
