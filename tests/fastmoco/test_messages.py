"""What pretraining says of its length and of its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fastmoco.ranks.world import World
from fastmoco.recipes import recipe
from fastmoco.trainer.messages import demo_hint, slow_first_step

CPU, GPU = World(0, 1, torch.device("cpu")), World(0, 1, torch.device("cuda", 0))


def test_the_demo_is_named_beside_a_long_training_on_a_cpu_alone():
    long = recipe("moco-v2")
    assert "fastmoco demo" in demo_hint(long, CPU, 3600)
    assert demo_hint(long, CPU, 3599) == demo_hint(long, GPU, 9e6) == demo_hint(recipe("demo"), CPU, 9e6) == ""


def test_what_makes_the_first_step_slow_is_named():
    local = replace(recipe("demo"), shards=Path("shards"))
    begin = "the first step takes longer than others: it "
    assert slow_first_step(local, CPU) == begin + "reads the first images"
    remote = replace(local, shards="s3://bucket/set", compile=True)
    assert slow_first_step(remote, GPU) == begin + (
        "downloads the first images and compiles its kernels by Triton and compiles the encoders by torch.compile, "
        "which takes minutes"
    )
