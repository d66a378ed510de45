"""The hash of a checkpoint's content: of what it says, not of how it is stored."""

from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch

from fastmoco.checkpoints.content import content_hash, matches, sealed

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, 2.5, None, True, "x", b"y"], "c": {0: (1, 2)}, "d": 10**600}


def test_it_is_of_the_content_alone():
    assert content_hash(STATE) == "82d0cf89005fff88a55c02967b2195aa95b986d346ea059e841703b2ae25815b"
    stored = torch.arange(12.0)
    storage = torch.zeros(3, 2).t().copy_(STATE["a"])  # other strides
    view = stored[:6].reshape(2, 3)  # of a larger storage
    for same in (storage, view, torch.nn.Parameter(STATE["a"].clone())):
        assert content_hash({**STATE, "a": same}) == content_hash(STATE)
    assert content_hash(OrderedDict(reversed(STATE.items()))) == content_hash(STATE)
    buffer = io.BytesIO()
    torch.save(sealed(STATE), buffer)
    buffer.seek(0)
    assert matches(torch.load(buffer, weights_only=True))


def test_a_large_tensor_is_hashed_in_parts():
    large = torch.randn(70, 100, 9, 9)  # two megabytes
    for other in (large.contiguous(memory_format=torch.channels_last), large[:, :, None], large.transpose(0, 3)):
        assert content_hash(other) == content_hash(other.contiguous().clone())
    assert content_hash(torch.ones(()).expand(3, 300_000)) == content_hash(torch.ones(3, 300_000))
    assert len({content_hash(torch.zeros(shape)) for shape in ((10**15, 0), (0, 10**15), (0,))}) == 3  # no parts


@pytest.mark.parametrize(
    "other",
    [
        {"a": STATE["a"].reshape(3, 2)}, {"a": STATE["a"].double()}, {"a": STATE["a"].view(torch.int32)},
        {"a": STATE["a"].clone().index_put_((torch.tensor(1), torch.tensor(2)), torch.tensor(5.0000005))},
        {"a": STATE["a"].tolist()}, {"b": tuple(STATE["b"])}, {"b": [1, 2.5, None, 1, "x", b"y"]},
        {"b": [1.0, 2.5, None, True, "x", b"y"]}, {"b": [1, 2.5, None, True, b"x", b"y"]}, {"c": {"0": (1, 2)}},
        {"c": {0: (1, 2), 1: None}}, {"c": [0, (1, 2)]}, {"d": 10**600 + 1}, {"d": 10**5000}, {"d": -(10**600)},
        {"e": None}, {"b": [1, 2.5, None, True, ["x", b"y"]]},
    ],
)  # fmt: skip
def test_every_change_changes_it(other):
    assert content_hash({**STATE, **other}) != content_hash(STATE)
    assert not matches({**sealed(STATE), **other})


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.float8_e5m2]
)
def test_tensors_of_every_type_and_shape(dtype):
    ones = [torch.ones(shape).to(dtype) for shape in ((), (0,), (0, 3), (1,), (4,))]
    assert len({content_hash(one) for one in ones}) == 5
    assert content_hash(torch.ones(4, 2).to(dtype)[:, 0]) == content_hash(ones[-1])


def test_what_is_no_plain_value_is_refused():
    circle: list = []
    circle.append(circle)
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    for value in (circle, nested):
        with pytest.raises(ValueError, match="nested more than 100 levels"):
            content_hash(value)
    with pytest.raises(TypeError, match="set is no tensor or plain value"):
        content_hash({"a": {1}})


def test_shared_parts_are_hashed_once():
    """A file of a kilobyte can hold a list of 2⁹⁰ entries."""
    value = [torch.ones(1)]
    for _ in range(90):
        value = [value, value]
    assert len(content_hash(value)) == 64
