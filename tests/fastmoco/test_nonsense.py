"""Warnings of figures that are finite and still show that something is wrong."""

from __future__ import annotations

import math

import pytest

from fastmoco.runs.warnings import collected
from fastmoco.trainer.nonsense import LINES, Nonsense

CHANCE = math.log(65)
SOUND = {
    "loss": 3.0, "accuracy": 0.4, "spread": 0.9, "grad_norm": 1.0, "queue_fill": 1.0, "variance": 20.0, "scale": 65536,
}  # fmt: skip


def names(*lines, patient_steps=2000, scale=1.0):
    """The warnings after lines of figures, each as (step, what differs from sound ones); with those that passed."""
    nonsense = Nonsense(scale * CHANCE, scale, patient_steps)
    with collected() as warnings:
        for step, changed in lines:
            nonsense.look({**SOUND, **changed}, step)
    return [(line["warning"], line.get("passed", False)) for line in warnings.unwritten()]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("variance", {"variance": 1e7}),
        ("chance", {"loss": CHANCE + 0.01}),
        ("above_chance", {"loss": CHANCE + 2.5}),
        ("gradient_spike", {"grad_norm": 11.0}),
        ("fp16_scale", {"scale": 0.5}),
        ("no_loss", {"accuracy": 1.0, "loss": 0.01}),
    ],
)
def test_each_kind_is_warned_of_once_and_passes(name, figures):
    sound = [(3000 + line, {}) for line in range(LINES)]
    assert names(*sound, (5000, figures), (5001, figures), (5002, {})) == [(name, False), (name, True)]


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize(
    ("name", "nats", "figures"),
    [
        ("chance", CHANCE - 0.019, {}),
        (None, CHANCE - 0.021, {}),
        ("above_chance", CHANCE + 2.1, {}),
        (None, CHANCE + 1.9, {}),
        ("no_loss", 0.049, {"accuracy": 1.0}),
        (None, 0.051, {"accuracy": 1.0}),
    ],
)
def test_limits_are_those_of_the_loss_in_nats(scale, name, nats, figures):
    """The loss of MoCo v3 is 2 tau InfoNCE."""
    assert names((3000, {"loss": scale * nats, **figures}), scale=scale) == ([(name, False)] if name else [])


def test_what_is_usual_at_the_start_is_no_warning():
    # a queue of random vectors is easy, and a new bank's random entries are 2.8 nats above chance
    assert not names((1, {"accuracy": 1.0, "loss": 0.01, "queue_fill": 0.1}), (1999, {"loss": CHANCE + 2.8}))
    assert not names((1999, {"loss": CHANCE}), (1, {"grad_norm": 50.0}), (11, {"grad_norm": 2.0}))
    assert not names((8000, {"loss": CHANCE + 2.8}), patient_steps=10_000)
    assert not names((5000, {name: value for name, value in SOUND.items() if name != "scale"}))  # not fp16
