"""SGD in one launch: the same steps, checkpoints and skipped steps as one launch per tensor and operation."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastmoco.ranks.world import World
from fastmoco.recipes import recipe
from fastmoco.runs.run import Run
from fastmoco.runs.tempo import Tempo
from fastmoco.trainer.optimiser import MomentumSGD
from fastmoco.trainer.soundness import looked_at
from fastmoco.trainer.step import TrainStep
from fastmoco.trainer.window import Window
from pipelines import TwoViews

CONFIG = replace(recipe("demo"), weight_decay=1e-2, batch_size=4, image_size=32, queue_size=20, precision="fp16")
SHAPES = ((4, 3, 3, 3), (8, 4, 1, 1), (8,), ())


def parameters():
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [nn.Parameter(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t) for t in made]


class Training:
    """Parameters, optimiser and scaler; each step has its own gradients, those of some steps with an overflow."""

    def __init__(self, fused: bool, config: Any = CONFIG) -> None:
        self.parameters = parameters()
        self.optimiser = MomentumSGD(self.parameters, config, fused)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def run(self, steps, overflows=()):
        for step in steps:
            self.optimiser.param_groups[0]["lr"] = 0.1 / (1 + step)
            generator = torch.Generator().manual_seed(100 + step)
            loss = torch.zeros(())
            for parameter in self.parameters:
                loss = loss + (parameter * torch.randn(parameter.shape, generator=generator)).sum()
            self.optimiser.zero_grad()
            self.scaler.scale(loss * (torch.inf if step in overflows else 1)).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
        return self

    def assert_equals(self, other):
        # the fused kernel rounds a product and a sum once, the other one each of them
        torch.testing.assert_close(self.parameters, other.parameters, rtol=1e-5, atol=1e-6)
        mine, theirs = (t.optimiser.state_dict()["state"] for t in (self, other))
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert self.scaler.get_scale() == other.scaler.get_scale()


@pytest.mark.parametrize("overflows", [(), (0,), (0, 1, 4)])
def test_fused_steps_equal_the_others_where_gradients_overflow_too(overflows):
    one, other = (Training(fused).run(range(6), overflows) for fused in (True, False))
    one.assert_equals(other)


def test_momentum_of_a_skipped_first_step_is_zero():
    """torch allocates it in that step without writing it."""
    training = Training(fused=True).run([0], overflows=[0])
    state = training.optimiser.state_dict()["state"]
    assert len(state) == len(SHAPES)
    assert all(not values["momentum_buffer"].any() for values in state.values())
    assert all(torch.equal(now, first) for now, first in zip(training.parameters, parameters(), strict=True))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("overflows", [(), (0, 1, 2)])  # in the latter the checkpoint has no momentum unless fused
def test_a_checkpoint_continues_fused_or_not(before, after, overflows):
    whole = Training(before).run(range(6), overflows)
    first, second = Training(before).run(range(3), overflows), Training(after)
    second.optimiser.load_state_dict(copy.deepcopy(first.optimiser.state_dict()))
    second.scaler.load_state_dict(first.scaler.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(second.parameters, first.parameters, strict=True):
            mine.copy_(theirs)
    second.run(range(3, 6), overflows)
    second.assert_equals(whole)
    if before is after:
        assert all(map(torch.equal, second.parameters, whole.parameters))


def test_momentum_of_other_strides_gets_the_parameters():
    state = Training(fused=False).run(range(2)).optimiser.state_dict()
    kept = [values["momentum_buffer"].clone() for values in state["state"].values()]
    for values in state["state"].values():
        values["momentum_buffer"] = values["momentum_buffer"].contiguous()
    training = Training(fused=True)
    training.optimiser.load_state_dict(state)
    for parameter, momentum in zip(training.parameters, kept, strict=True):
        loaded = training.optimiser.state[parameter]["momentum_buffer"]
        assert loaded.stride() == parameter.stride() and torch.equal(loaded, momentum)


@pytest.mark.parametrize("fused", [True, False])
def test_a_resumed_run_uses_its_own_settings(fused):
    """The rate of the last step is no setting: a run that ends without another step saves the same state."""
    state = Training(fused).run(range(2)).optimiser.state_dict()
    state["param_groups"][0]["lr"] = 0.125
    training = Training(not fused, replace(CONFIG, momentum=0.5, weight_decay=0.25))
    training.optimiser.load_state_dict(state)
    (group,) = training.optimiser.param_groups
    assert (group["momentum"], group["weight_decay"], bool(group["fused"])) == (0.5, 0.25, not fused)
    assert group["lr"] == 0.125


class Reads(TorchDispatchMode):
    """Counts the values that the host reads from a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Collects calls that build a tensor of Python's numbers on a device: the host waits for their copy to a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = args[1] if func is torch.Tensor.__getitem__ else None
        of_numbers = any(isinstance(one, list | np.ndarray) for one in (place if isinstance(place, tuple) else [place]))
        if func is torch.Tensor.new_tensor or (func is torch.tensor and (kwargs or {}).get("device")) or of_numbers:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("fused", "reads"), [(True, 0), (False, 1)])
def test_an_iteration_in_fp16_reads_nothing_on_the_host(fused, reads):
    """A step, its figures, and the start of a log line."""
    train = TrainStep(CONFIG, torch.device("cpu"), total_steps=4)
    assert train.scaler.is_enabled()
    train.optimiser = MomentumSGD(train.optimiser.param_groups[0]["params"], CONFIG, fused)
    views = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    query, key = (view.contiguous(memory_format=torch.channels_last) for view in views)
    batch = TwoViews(query, key, torch.arange(4))
    train(batch, 0)
    window = Window(torch.device("cpu"))
    here = World(0, 1, torch.device("cpu"))
    run = SimpleNamespace(here=here, step=2, own_time=lambda: (0.5, 1), _tempo=Tempo(here, ["host"]))
    with Reads() as seen, Copies() as copied:
        window.add(train(batch, 1), 0.0)
        fill, also = train.model.dictionary.fill(), looked_at(train)
        arriving = window.start_reading(4, fill, partial(Run.start_sum_over_ranks, run), also)
    figures = arriving()
    assert seen.count == reads and not copied.names
    assert figures["queue_fill"] == pytest.approx(8 / 20) and figures["spoilt"] == 0
    variances = [value.max().item() for name, value in train.tensors().items() if name.endswith("running_var")]
    assert figures["variance"] == pytest.approx(max(variances))
