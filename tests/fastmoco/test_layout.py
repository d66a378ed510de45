from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastmoco.recipes import recipe
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews

VIEWS = {"aten::permute", "aten::view", "aten::expand", "aten::_unsafe_view"}  # these move no data


class Layouts(TorchDispatchMode):
    """Records every operation that returns a 4-d tensor, and which of its 4-d tensors are not channels-last."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.wrong = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name()
        self.convolutions += name in ("aten::convolution", "aten::convolution_backward")
        if name in VIEWS:
            return result
        given = [*args, *(result if isinstance(result, tuple | list) else (result,))]
        for tensor in given:
            if not channels_last(tensor):
                self.wrong.append((name, tuple(tensor.shape), tensor.stride()))
        return result


def channels_last(value):
    """Whether a 4-d tensor has channels-last strides; true for all other values."""
    spatial = isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[2] * value.shape[3] > 1
    return not spatial or value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("resnet10", {}),
        ("resnet10", {"mechanism": "end-to-end"}),
        ("resnet10", {"mechanism": "memory-bank", "head": "linear"}),
        ("resnet10", {"bn_splits": 2}),
        ("resnet10", {"accumulate": 2}),
        ("resnet10", {"bn_splits": 2, "batch_norm_kernel": "fused"}),
        ("resnet10", {"symmetric": True, "precision": "fp32"}),
        ("resnet50", {"precision": "fp32"}),
    ],
    ids=str,
)
def test_no_tensor_of_a_step_changes_its_layout(arch, changes):
    """From the first to the last convolution, forward, backward and in the update."""
    shape = {"arch": arch, "batch_size": 4, "queue_size": 10, "image_size": 64, "precision": "bf16"}
    config = replace(recipe("demo"), **{**shape, **changes})
    step = TrainStep(config, torch.device("cpu"), total_steps=1, samples=9)
    query, key = torch.randn(2, 4, 3, 64, 64).unbind()
    batch = TwoViews(*(v.contiguous(memory_format=torch.channels_last) for v in (query, key)), torch.arange(4))
    with Layouts() as seen:
        step(batch, 0)
    assert seen.convolutions >= {"resnet10": 12, "resnet50": 53}[arch] * 2
    assert not seen.wrong, sorted(set(seen.wrong))[:10]
