from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastmoco.kernels import infonce, reference


def inputs(n, k, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def unit(rows):
        return F.normalize(torch.randn(rows, d, generator=generator, dtype=dtype), dim=1)

    return unit(n), unit(n), unit(k)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (3, 7, 5), (16, 100, 32), (5, 4097, 3), (2, 8192, 16)])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1e-3])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_equals_reference(n, k, d, temperature, chunk):
    if k > 1000 and chunk == 1:
        pytest.skip("thousands of one-row chunks show nothing that a hundred do not")
    query, key, negatives = inputs(n, k, d)
    ours = query.clone().requires_grad_()
    theirs = query.clone().requires_grad_()
    loss, hit = infonce(ours, key, negatives, temperature, chunk)
    expected, expected_hit = reference.infonce(theirs, key, negatives, temperature)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(hit, expected_hit)
    weights = torch.linspace(0.5, 2, n, dtype=query.dtype)
    (loss * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradcheck():
    query, key, negatives = inputs(4, 11, 6)
    assert torch.autograd.gradcheck(
        lambda q: infonce(q, key, negatives, 0.2, 3)[0], query.requires_grad_(), check_undefined_grad=False
    )


def test_float32_is_close_to_float64_at_extreme_temperature():
    query, key, negatives = inputs(8, 1000, 128, torch.float32)
    loss, _ = infonce(query, key, negatives, 1e-3)
    expected, _ = reference.infonce(query.double(), key.double(), negatives.double(), 1e-3)
    # logits reach 1000 and float32 has 24 bits: errors of 1e3 · 2^-22 are rounding
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-3)


def test_equal_keys_give_the_log_of_their_number():
    query, key, _ = inputs(3, 1, 8)
    loss, hit = infonce(key, key, key[:1].expand(7, 8) * 0 + query[:1], 1e9)
    torch.testing.assert_close(loss, torch.full((3,), 8.0, dtype=torch.float64).log(), atol=1e-8, rtol=0)
    assert hit.tolist() == [True] * 3


def test_dictionary_may_change_before_backward():
    query, key, negatives = inputs(4, 9, 6)
    first, second = query.clone().requires_grad_(), query.clone().requires_grad_()
    infonce(first, key, negatives, 0.1)[0].sum().backward()
    loss = infonce(second, key, negatives, 0.1)[0].sum()
    negatives.zero_()
    loss.backward()
    assert torch.equal(first.grad, second.grad)


def test_shapes_that_do_not_fit_are_named():
    query, key, negatives = inputs(4, 9, 6)
    with pytest.raises(ValueError, match=r"\(4, 6\), \(4, 6\), \(9, 5\)"):
        infonce(query, key, negatives[:, :5], 0.1)
