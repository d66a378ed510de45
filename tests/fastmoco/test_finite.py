"""Whether a state is finite."""

from __future__ import annotations

import pytest
import torch

from fastmoco.checkpoints.finite import first_not_finite, floating, largest
from fastmoco.checkpoints.saving import save

BAD = (float("nan"), float("inf"), float("-inf"))


def state(dtype=torch.float32):
    image = torch.ones(2, 3, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return {
        "encoder": {"weight": image, "count": torch.tensor(3), "none": torch.zeros(0, dtype=dtype)},
        "optimiser": {"state": {0: {"momentum_buffer": torch.zeros(5, dtype=dtype)}}},
        "progress": {"step": 7, "window": {"sums": [1.0, 2.0]}, "name": "nan"},
    }


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_value_that_is_not_finite_is_named(bad, dtype):
    assert first_not_finite(state(dtype)) is None
    spoilt = state(dtype)
    spoilt["optimiser"]["state"][0]["momentum_buffer"][3] = bad
    assert first_not_finite(spoilt) == "optimiser.state.0.momentum_buffer"
    spoilt["encoder"]["weight"][1, 2, 3, 0] = bad
    assert first_not_finite(spoilt) == "encoder.weight"
    tensors = floating(spoilt)
    assert list(tensors) == ["encoder.weight", "encoder.none", "optimiser.state.0.momentum_buffer"]
    assert largest(list(tensors.values())).isfinite().tolist() == [False, False]  # the empty one has no value


@pytest.mark.parametrize("bad", BAD)
def test_a_plain_number_that_is_not_finite_is_named(bad):
    spoilt = state()
    spoilt["progress"]["window"]["sums"][1] = bad
    assert first_not_finite(spoilt) == "progress.window.sums.1"


def test_the_largest_finite_numbers_are_finite():
    assert first_not_finite({"a": torch.full((9,), torch.finfo(torch.float32).max)}) is None
    assert first_not_finite({"a": torch.full((9,), torch.finfo(torch.float64).min, dtype=torch.float64)}) is None
    assert largest([torch.tensor([-3.0, 2.0]), torch.tensor([0.5])]).tolist() == [3, 0.5]
    assert largest([]).tolist() == []


def test_nothing_as_large_as_a_tensor_is_allocated_to_check_and_write_a_state(tmp_path):
    # a copy for each checkpoint would leave holes in the memory of a run of weeks
    weight = torch.randn(128, 128, 8, 8).contiguous(memory_format=torch.channels_last)  # 4 MiB
    with torch.profiler.profile(profile_memory=True) as recorded:
        assert first_not_finite({"weight": weight}) is None
        save(tmp_path / "checkpoints", {"progress": {"step": 1}, "weight": weight}, 1)
    largest_event = max(event.cpu_memory_usage for event in recorded.events())
    assert 0 < largest_event < weight.nbytes / 8
