"""The kernels against float64, and their times on the device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from _gpu.suite import Row, Rows, Suite
from _timing import timed
from fastmoco.kernels import batchnorm, reference
from kernels import SHAPES, measure
from pipelines import ViewSpec, draw
from pipelines.colour import finish
from pipelines.device_colours import DeviceColours

_TINY = ((8, 64, 16),)


def rows(suite: Suite) -> Rows:
    """Loss and queue, grouped BatchNorm, and colours."""
    for n, k, d in _TINY if suite.tiny else SHAPES:
        for row in measure([(n, k, d)], suite.on, repeats=1 if suite.tiny else 5):
            kept = (
                "by",
                "taken_by",
                "median_ms",
                "lowest_ms",
                "highest_ms",
                "peak_mib",
                "loss_error",
                "gradient_error",
            )
            yield (
                {"kernel": "loss and queue", "n": n, "k": k, "d": d, "way": row["way"]},
                partial(dict, {name: row[name] for name in kept}),
            )
    # layers of a ResNet-50 at 224 pixels: the stem's, which is the largest, and one of each kind of the last stage
    side = suite.image_size
    for channels, size, residual in ((64, side // 2, False), (256, side // 4, True), (2048, side // 32, True)):
        for groups in (1, 8):
            shape = (suite.batch_size, channels, max(2, size), max(2, size))
            label = {"kernel": "BatchNorm, ReLU", "shape": "x".join(map(str, shape)), "groups": groups}
            yield label | {"residual": residual}, partial(_batch_norm, suite, shape, groups, residual)
    yield {"kernel": "colours"}, partial(_colours, suite)


def _batch_norm(suite: Suite, shape: tuple[int, ...], groups: int, residual: bool) -> Row:
    """Forward and backward by torch's operations and by the kernel, after a comparison with float64."""
    # on a CPU the fused BatchNorm is torch's operations as well: the row shows that the part works
    dtype = torch.bfloat16 if suite.device == "cuda" else torch.float32
    torch.manual_seed(0)
    x, grad = (_like_images(torch.randn(shape, device=suite.on, dtype=dtype)) for _ in range(2))
    added = torch.randn_like(x) if residual else None
    weight, bias = (torch.rand(shape[1], device=suite.on) + shift for shift in (0.5, -0.5))
    error = _error(x, weight, bias, added, grad, groups)

    def run(by: Callable[..., torch.Tensor]) -> None:
        leaf, scale, shift = (tensor.detach().requires_grad_() for tensor in (x, weight, bias))
        by(leaf, scale, shift, added).backward(grad)

    def eager(leaf: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        parts = [torch.batch_norm(part, scale, shift, None, None, True, 0.1, 1e-5, True) for part in leaf.chunk(groups)]
        out = torch.cat(parts) if groups > 1 else parts[0]
        return torch.relu(out if added is None else out + added)

    fused = partial(batchnorm.batch_norm, relu=True, groups=groups)
    times = timed({"torch": lambda: run(eager), "fused": lambda: run(fused)}, suite.on, 2 if suite.tiny else 10)
    figures = {f"{name}_ms": round(1e3 * statistics.median(each.seconds), 3) for name, each in times.items()}
    return figures | {
        "by": batchnorm.implementation(suite.on, dtype),
        "difference": error,
        "taken_by": times["fused"].taken_by,
    }


def _error(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    added: torch.Tensor | None,
    grad: torch.Tensor,
    groups: int,
) -> float:
    """Largest difference of the kernel's output and input gradient from float64, relative to the largest value.

    Of the first channels, since BatchNorm treats each by itself: float64 values of all would not fit in memory.

    Raises:
        RuntimeError: it is more than the rounding of the dtype.
    """
    few = slice(0, 16)
    leaf = x.detach().requires_grad_()
    out = batchnorm.batch_norm(leaf, weight, bias, added, relu=True, groups=groups)
    out.backward(grad)
    exact = x[:, few].double().requires_grad_()
    residual = None if added is None else added[:, few].double()
    wanted = reference.batch_norm(exact, weight[few].double(), bias[few].double(), residual, relu=True, groups=groups)[
        0
    ]
    wanted.backward(grad[:, few].double())
    assert leaf.grad is not None and exact.grad is not None
    out, wanted = out[:, few].detach().double(), wanted.detach()
    of_output = float((out - wanted).abs().max() / wanted.abs().max())
    # where rounding decides on which side of ReLU's zero an output lies, the gradients differ by all of it
    same = (out > 0) == (wanted > 0)
    of_gradient = float(((leaf.grad[:, few] - exact.grad) * same).abs().max() / exact.grad.abs().max())
    # one rounding to the dtype, and the error of float32 sums
    if max(of_output, of_gradient) > torch.finfo(x.dtype).eps + 1e-5:
        raise RuntimeError(f"BatchNorm is wrong by {of_output:.2g} in the output, {of_gradient:.2g} in the gradient")
    return float(f"{max(of_output, of_gradient):.2g}")


def _colours(suite: Suite) -> Row:
    """Both views of a batch: torch's operations and the kernel."""
    spec, side = ViewSpec.moco_v2(suite.image_size), suite.image_size
    count, dtype = suite.batch_size, torch.bfloat16 if suite.device == "cuda" else torch.float32
    levels = torch.randint(0, 256, (2, count, side, side, 3), dtype=torch.uint8, device=suite.on)
    ids, sizes = np.arange(count), np.full((count, 2), 2 * side)
    query, key = (draw(spec, seed=0, epoch=0, ids=ids, sizes=sizes, view=view) for view in (0, 1))
    paint = DeviceColours(spec, dtype, suite.on)
    expected, found = finish(levels[0], query, spec, dtype), paint(levels[0], levels[1], (query, key))[0]
    error = float((expected.float() - found.float()).abs().max())
    if error > 8 * torch.finfo(dtype).eps:  # values reach 2.7: one rounding of the dtype, and the sums' order
        raise RuntimeError(f"the colours differ from torch's operations by {error:.2g}")
    works = {
        "torch": lambda: [
            finish(view, of_view, spec, dtype) for view, of_view in zip(levels, (query, key), strict=True)
        ],
        paint.implementation: lambda: paint(levels[0], levels[1], (query, key)),
    }
    # both copy their factors from the host: no graph holds them
    times = timed(works, suite.on, 2 if suite.tiny else 10, waiting=tuple(works))
    figures = {f"{name}_ms": round(1e3 * statistics.median(each.seconds), 3) for name, each in times.items()}
    return figures | {"by": paint.implementation, "difference": float(f"{error:.2g}")}


def _like_images(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
