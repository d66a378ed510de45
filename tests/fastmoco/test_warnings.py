"""Warnings of what a run would otherwise be misled by."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from fastmoco.precision import warn_if_slower
from fastmoco.trainer.messages import warn_of_collapse

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("spread", "fill", "step", "collapsed"),
    [
        # a run of the demo's recipe with --lr 10: accuracy 100 % in every line, and a queue of 65,536 that fills slowly
        (0.468, 0.001, 1, False), (0.072, 0.003, 3, False), (0.018, 0.005, 5, True), (0.002, 1.0, 1000, True),
        # the first steps of sound runs: demo, ResNet-18 and ResNet-50 with new weights
        (0.434, 0.01, 1, False), (0.411, 0.01, 3, False), (0.44, 1.0, 10, False),
    ],
)  # fmt: skip
def test_a_collapse_is_named_however_full_the_queue_is(caplog, spread, fill, step, collapsed):
    assert warn_of_collapse({"spread": spread, "queue_fill": fill, "accuracy": 1.0}, step) is collapsed
    assert (f"feature spread is {spread:.4f} at step {step}" in caplog.text) is collapsed


@pytest.mark.parametrize(("slower", "says"), [(10, "at 0.1 of their speed in fp32 (measured now)"), (1, "")])
def test_a_half_precision_that_is_slower_on_this_cpu_is_named_with_its_rate(caplog, monkeypatch, slower, says):
    """Each measurement reads the clock before and after."""
    durations = [1, 1, 1, slower, slower, slower]
    ticks = iter(list(itertools.accumulate(step for each in durations for step in (0, each))))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    warn_if_slower("fp16", CPU)
    assert says in caplog.text and bool(caplog.text) is bool(says)
    warn_if_slower("auto", CPU)  # measures nothing
