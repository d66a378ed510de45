"""--compile with --accumulate: equal to the same settings without it, to rounding, also after a restart."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from fastmoco.trainer.step import TrainStep
from tests.fastmoco.test_accumulate import BASE, SAMPLES, STEPS, assert_equal, batch, narrow, trained

__all__ = ["narrow"]  # its fixture: a narrow encoder, one thread
SCRIPT = Path(__file__).parent / "scripts" / "compiled.py"
# in float64; BatchNorm over two images amplifies rounding at each step
CASES = [
    ({}, 1e-9),
    ({"symmetric": True}, 1e-9),
    ({"batch_norm": "sync"}, 1e-9),
    ({"bn_splits": 2}, 1e-6),
    ({"mechanism": "memory-bank"}, 1e-9),
]


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_micro_batches_are_those_without_it_when_traced(monkeypatch):
    """Traced as for the default backend, which takes half a minute to compile; forwards and backwards run eagerly."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert_equal(trained(accumulate=2, compile=True), trained(accumulate=2), 1e-9)


@pytest.mark.long
@pytest.mark.parametrize(("settings", "tolerance"), CASES)
def test_micro_batches_are_those_without_it(settings, tolerance):
    assert_equal(trained(accumulate=2, compile=True, **settings), trained(accumulate=2, **settings), tolerance)


@pytest.mark.long
def test_with_a_queue_of_bfloat16():
    """One step, in float32: the queue's rounding would make a difference of the last bit one of its own."""
    settings = {"accumulate": 2, "queue_dtype": "bfloat16"}
    (_, (ours,)), (_, (theirs,)) = (trained(1, torch.float32, compile=on, **settings) for on in (True, False))
    for name in ("loss", "accuracy", "grad_norm"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_a_run_continues_with_it_and_without_it():
    whole = trained(accumulate=2)
    for first, then in ((True, False), (False, True), (True, True)):
        train, figures = trained(2, accumulate=2, compile=first)
        state = copy.deepcopy(train.state())
        again = TrainStep(replace(BASE, accumulate=2, compile=then), torch.device("cpu"), STEPS, SAMPLES)
        again.model.double()
        again.load_state(state)
        assert_equal((again, [*figures, again(batch(2, torch.float64), 2)]), whole, 1e-9)


@pytest.mark.long
@pytest.mark.distributed
def test_on_two_ranks(torchrun):
    lines = torchrun(2, SCRIPT).stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("equal with ") for line in lines), lines
