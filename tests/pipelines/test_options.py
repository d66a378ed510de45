"""Options of a pipeline: their ranges, and that `fastmoco train` has the same ones."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from fastmoco.config import Config, ConfigError
from pipelines import PipelineError, PipelineOptions

WRONG = [
    ("pipeline", "ffcv", "one of auto, dali, torch, constant"),
    ("order", "random", "one of auto, global, sharded"),
    ("weights", (0.5, 0.0), "above 0 and at most 1,000, each of them"),
    ("order_window", 0, "at least 1"),
    ("order_lanes", 0, "at least 1"),
    ("shuffle_buffer", 0, "at least 1"),
    ("threads", 0, "at least 1"),
    ("prefetch", 0, "at least 1"),
    ("decoder_load", 1.5, "in 0..1"),
    ("decoder_load", -0.1, "in 0..1"),
    ("decoder_load", float("nan"), "in 0..1"),
    ("max_bad_images", -1.0, "a whole number, or a share of the set below 1"),
    ("max_bad_images", 2.5, "a whole number, or a share of the set below 1"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_an_option_out_of_its_range_is_named_with_the_range(name, value, allowed):
    with pytest.raises(PipelineError, match=re.escape(f"{name}={value!r}: it must be {allowed}")):
        PipelineOptions(**{name: value})
    flag = name.replace("_", "-")
    with pytest.raises(ConfigError, match=re.escape(f"--{flag} is {value}; it must be {allowed}")):
        Config(**{name: value})


def test_every_option_is_checked():
    assert {name for name, _, _ in WRONG} == {field.name for field in fields(PipelineOptions)}
