"""The key encoder's weights rounded in one launch: the same bits as autocast's casts, one by one."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastmoco.config import Config
from fastmoco.model import encoders
from fastmoco.model.moco import MoCo
from fastmoco.recipes import recipe
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import narrow_resnet10

CPU = torch.device("cpu")
CONFIG = replace(
    recipe("demo"),
    head="mlp",
    feature_dim=16,
    batch_size=8,
    image_size=32,
    queue_size=32,
    precision="bf16",
    base_lr=0.1,
)
BATCHES = torch.randn(4, 2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))


def _step(config: Config) -> TrainStep:
    step = TrainStep(config, CPU, 100)
    if step.scaler.is_enabled():  # its first scale would overflow, and the first steps would be skipped
        step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 1.0})
    return step


def _train(step: TrainStep, first: int, last: int) -> None:
    for number in range(first, last):
        query, key = (view.contiguous(memory_format=torch.channels_last) for view in BATCHES[number])
        step(TwoViews(query, key, torch.arange(8)), number)


def _state(step: TrainStep) -> dict[str, torch.Tensor]:
    return step.model.shared() | {f"own {name}": value for name, value in step.model.state_dict().items()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "changes", [{}, {"bn_splits": 2}, {"symmetric": True}, {"batch_norm_kernel": "fused"}, {"batch_norm": "plain"}]
)
def test_steps_are_those_of_autocast_bit_for_bit(monkeypatch, changes, precision):
    config = replace(CONFIG, precision=precision, **changes)
    rounded = _step(config)
    assert rounded.model._rounded_keys is not None
    _train(rounded, 0, 4)
    monkeypatch.setattr(MoCo, "round_key_weights", lambda self, dtype: None)
    cast = _step(config)
    start = {name: value.clone() for name, value in _state(cast).items()}
    _train(cast, 0, 4)
    expected, found = _state(cast), _state(rounded)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    moved = [name for name in start if "key_encoder" in name and not torch.equal(start[name], expected[name])]
    assert any(name.endswith("weight") for name in moved) and any(name.endswith("running_mean") for name in moved)


def test_a_loaded_state_is_what_the_keys_are_made_of():
    whole, resumed = TrainStep(CONFIG, CPU, 100), TrainStep(replace(CONFIG, seed=1), CPU, 100)
    _train(whole, 0, 2)
    resumed.load_state(copy.deepcopy(whole.state()))
    resumed.config = resumed.model.config = CONFIG  # the seed of the shuffles
    _train(whole, 2, 4)
    _train(resumed, 2, 4)
    assert all(torch.equal(value, _state(resumed)[name]) for name, value in _state(whole).items())


class _Casts(TorchDispatchMode):
    """Counts casts of whole weights to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::_to_copy", "aten::_foreach_copy_"):
            self.names[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_the_key_encoder_rounds_its_weights_in_one_launch():
    step = TrainStep(CONFIG, CPU, 100)
    images = BATCHES[0, 0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), _Casts() as seen:
        step.model.encode_keys(images, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), _Casts() as before:
        step.model.key_encoder(images)
    weights = sum(isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) for m in step.model.key_encoder.modules())
    assert seen.names["aten::_foreach_copy_"] == 1
    assert before.names["aten::_to_copy"] - seen.names["aten::_to_copy"] >= weights


@pytest.mark.parametrize("changes", [{"precision": "fp32"}, {"mechanism": "end-to-end"}, {"mechanism": "memory-bank"}])
def test_nothing_is_rounded_where_there_is_nothing_to_save(changes):
    assert TrainStep(replace(CONFIG, **changes), CPU, 100, samples=64).model._rounded_keys is None
