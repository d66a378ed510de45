"""Batches of all BatchNorms counted in one launch: the same state as with a launch for each."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmoco.model import encoders
from fastmoco.model.batchnorm import BatchNorm2d, SplitBatchNorm2d, SyncBatchNorm2d
from fastmoco.model.encoders import Encoder
from fastmoco.model.moco import MoCo
from fastmoco.recipes import recipe
from tests.support.runs import narrow_resnet10

IMAGES = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG = replace(recipe("demo"), head="mlp", feature_dim=16, batch_size=4, image_size=32, queue_size=8)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))
    torch.manual_seed(0)


class Launches(TorchDispatchMode):
    """Operations that write a whole number in place."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0][0] if args and isinstance(args[0], (list, tuple)) and args[0] else (args or (None,))[0]
        if func._schema.is_mutable and isinstance(first, torch.Tensor) and first.dtype == torch.int64:
            self.names[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch_norm", ["shuffle", "plain", "sync"])
def test_an_encoder_equals_torchs_bit_for_bit_and_counts_in_one_launch(batch_norm):
    ours = MoCo(replace(CONFIG, batch_norm=batch_norm)).encoder
    torchs = Encoder("resnet10", "mlp", 16)
    torchs.load_state_dict(ours.state_dict())
    assert {type(m) for m in torchs.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}
    with Launches() as seen:
        outputs = [ours(images) for images in IMAGES]
    expected = [torchs(images) for images in IMAGES]
    assert seen.names == {"aten::_foreach_add_.Scalar": len(IMAGES)}
    torch.stack(outputs).square().sum().backward()
    torch.stack(expected).square().sum().backward()
    assert all(map(torch.equal, outputs, expected))
    gradients = zip(ours.parameters(), torchs.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in gradients if a.grad is not None and b.grad is not None)
    state = torchs.state_dict()
    assert list(state) == list(ours.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    assert {int(tensor) for name, tensor in state.items() if "tracked" in name} == {len(IMAGES)}
    ours.eval()(IMAGES[0])
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def test_a_copy_counts_its_own_batches_on_other_dtypes_too():
    first = MoCo(CONFIG).encoder
    second = copy.deepcopy(first).double()
    second(IMAGES[0].double())
    counts = [{int(b) for name, b in encoder.named_buffers() if "tracked" in name} for encoder in (first, second)]
    assert counts == [{0}, {1}]


@pytest.mark.parametrize("kind", [BatchNorm2d, SyncBatchNorm2d])
def test_a_batchnorm_outside_of_an_encoder_counts_by_itself(kind):
    ours, torchs = kind(3), nn.BatchNorm2d(3)
    assert torch.equal(ours(IMAGES[0]), torchs(IMAGES[0]))
    assert all(map(torch.equal, ours.state_dict().values(), torchs.state_dict().values()))


@pytest.mark.parametrize("kind", [BatchNorm2d, SyncBatchNorm2d, lambda channels: SplitBatchNorm2d(channels, 1)])
def test_tokens_are_normalised_as_by_torchs_batchnorm1d(kind):
    """[B, C, L], as NextViT has them; in training, and in evaluation."""
    ours, torchs = kind(4), nn.BatchNorm1d(4)
    tokens = torch.randn(3, 4, 4)
    assert torch.equal(ours(tokens), torchs(tokens))
    assert torch.equal(ours.get_buffer("running_var"), torchs.get_buffer("running_var"))
    assert torch.equal(ours.eval()(tokens), torchs.eval()(tokens))
    with pytest.raises(ValueError, match=r"has the shape \[3, 4, 1, 1, 1\]; expected .*\[B, C, L\] or"):
        ours(tokens[:, :, :1, None, None])
