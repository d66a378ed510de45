"""Launches and bytes of one training step, counted on fake tensors: no GPU, no arithmetic, no memory.

    python benchmarks/step_counts.py [--arch resnet50] [--batch-size 256] [--bn-splits 1 8] [--json OUT]

Each operation that is no view counts as one launch, unless LAUNCHES says otherwise, and moves each of its tensors once
through memory, unless `_moved` says otherwise. What a cache holds between two operations is therefore counted in
full, and what an implementation moves beyond its inputs and outputs is not: the numbers compare implementations, and
divided by a card's bandwidth they give the least time of a step that is bound by memory.

Autocast to bfloat16 as on a GPU; keys are not shuffled, which would add one gather of the images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from _command import script
from _environment import environment
from _results import show, write_json
from fastmoco.flags import at_least
from fastmoco.kernels import batchnorm, batchnorm_triton
from fastmoco.recipes import moco_v2
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews

H100_BYTES_PER_SECOND = 3.35e12
"""Of an H100 SXM5, by its data sheet."""
LAUNCHES = {
    "aten::native_batch_norm": 3,  # statistics, running statistics, normalisation (Normalization.cu)
    "aten::native_batch_norm_backward": 2,  # sums, input gradient
    "aten::convolution_backward": 2,  # input and weight gradients
    "fastmoco::infonce": 2,
}
_FREE = (
    *("aten::empty", "aten::new_empty", "aten::detach", "aten::alias", "aten::lift_fresh", "aten::promote_types"),
    *("prim::", "profiler::"),
)
"""Operations that launch nothing, by the beginnings of their names."""
# of an H100 SXM5: the fused kernels write partial sums for each, which count as bytes
_PROCESSORS = 132


@dataclass(frozen=True)
class Args:
    """Launches and bytes of a training step."""

    arch: str = "resnet50"
    """Encoder."""
    batch_size: int = 256
    """Images per step."""
    image_size: int = 224
    """Side of a view in pixels."""
    bn_splits: tuple[int, ...] = (1, 8)
    """BatchNorm groups, a count for each."""
    json: Path | None = None
    """File to write the rows to."""


class Counted(TorchDispatchMode):
    """Adds up the launches and bytes of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().split(".")[0]
        if not func.is_view and not name.startswith(_FREE):
            self.launches[name] += LAUNCHES.get(name, 1)
            self.bytes[name] += _moved(func, name, args, kwargs or {}, result)
        return result

    def launch(self, name: str, tensors: Iterable[Any]) -> None:
        """Count a kernel that reads or writes each of its tensors once."""
        self.launches[name] += 1
        self.bytes[name] += size(tensors)


def size(values: Any) -> int:
    """Bytes of all tensors among `values`, each once."""
    tensors = {id(value): value for value in tree_leaves(values) if isinstance(value, torch.Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _moved(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> int:
    written = size(result)
    if result is None:  # in place, over lists of tensors
        written = size([v for v, a in zip(args, func._schema.arguments, strict=False) if a.alias_info is not None])
    once = size([args, kwargs]) + written
    if name == "aten::native_batch_norm":
        return once + size(args[0])  # statistics first
    if name in ("aten::native_batch_norm_backward", "aten::convolution_backward"):
        return once + size(args[:2])  # gradient and input, once for each of two launches
    return once


class _Recorder:
    """Stands in for a Triton kernel, which fake tensors cannot be given to."""

    def __init__(self, name: str, counted: Counted) -> None:
        self.name, self.counted = name, counted

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **constants: self.counted.launch(self.name, args)


def count(args: Args, splits: int, kernel: str) -> Counted:
    """The counts of a step."""
    config = replace(
        moco_v2(), arch=args.arch, batch_size=args.batch_size, image_size=args.image_size, precision="bf16",
        batch_norm="plain", bn_splits=splits, batch_norm_kernel=kernel,
    )  # fmt: skip
    step = TrainStep(config, torch.device("cpu"), 1000)
    # loss and queue as operators, as when compiled: eager, on a CPU, plain torch's launches would be counted
    infonce, enqueue = (vars(import_module(f"fastmoco.kernels.{name}_operator")) for name in ("infonce", "enqueue"))
    infonce["_InfoNCE"].apply, enqueue["_store"] = infonce["_operator"], enqueue["_operator"]
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # for the constants that a step makes
    _make_fake(step, mode)
    with mode, Counted() as counted:
        shape = (args.batch_size, args.image_size, args.image_size, 3)
        images = [torch.empty(shape, dtype=torch.bfloat16).permute(0, 3, 1, 2) for _ in range(2)]
        batch = TwoViews(images[0], images[1], torch.arange(args.batch_size))
        if kernel == "fused":
            _record_triton(counted)
        step(batch, 0)  # allocates the optimiser's state
        counted.launches.clear()
        counted.bytes.clear()
        step(batch, 1)
    return counted


def _make_fake(step: TrainStep, mode: FakeTensorMode) -> None:
    """Replace the weights by fake ones, in the model and in the optimiser."""
    fakes: dict[torch.Tensor, nn.Parameter] = {}
    for module in step.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[name] = fakes[parameter] = fake
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)
    for group in step.optimiser.param_groups:
        group["params"] = [fakes[parameter] for parameter in group["params"]]
        group["fused"] = True  # as on a GPU


def _record_triton(counted: Counted) -> None:
    """Have Triton's launches counted in place of being made, with the partial results of an H100."""
    # on a CPU the passes of plain torch would be chosen, and those would be counted
    batchnorm.implementation = lambda device, dtype: "triton"
    batchnorm_triton._programs = lambda device: batchnorm_triton.PROGRAMS_PER_PROCESSOR * _PROCESSORS
    for name in [name for name in vars(batchnorm_triton) if name.endswith("_kernel")]:
        setattr(batchnorm_triton, name, _Recorder(f"batchnorm::{name}", counted))


def run(args: Args) -> None:
    """Count a step by each implementation with each number of groups, print the sums, and write the rows."""
    at_least(1, args, "batch_size", "image_size")
    rows = []
    for kernel in ("torch", "fused"):
        for splits in args.bn_splits:
            counted = count(args, splits, kernel)
            moved, launches = sum(counted.bytes.values()), sum(counted.launches.values())
            row = {"arch": args.arch, "batch_size": args.batch_size, "image_size": args.image_size}
            row |= {
                "batch_norm_kernel": kernel,
                "bn_splits": splits,
                "launches": launches,
                "gigabytes": round(moved / 1e9, 2),
            }
            row |= {"imgs_per_sec_at_h100_bandwidth": round(args.batch_size / (moved / H100_BYTES_PER_SECOND))}
            show(row)
            for name, total in counted.bytes.most_common(12):
                print(f"    {name:40} {counted.launches[name]:6} launches {total / 1e9:8.2f} GB")
            rows.append(row | {"launches_of": dict(counted.launches), "bytes_of": dict(counted.bytes)})
    if args.json:
        write_json(args.json, {"rows": rows, "environment": environment()})


if __name__ == "__main__":
    script(Args, run)
