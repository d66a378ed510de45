from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastmoco.kernels import infonce, reference
from fastmoco.kernels.infonce_operator import chunk_for
from fastmoco.model.dictionary import Queue


def inputs(n, k, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def unit(rows):
        return F.normalize(torch.randn(rows, d, generator=generator, dtype=dtype), dim=1)

    return unit(n), unit(n), unit(k)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (3, 7, 5), (5, 37, 19), (16, 100, 32), (2, 8192, 16)])
@pytest.mark.parametrize("temperature", [0.07, 1e-3, 100.0])
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


@pytest.mark.parametrize("queries", [1, 3, 32, 256, 300, 1024, 100_000])
def test_chunks_of_a_gpu_are_bounded_by_the_bytes_of_their_logits(queries):
    chunk = chunk_for(queries, torch.device("cuda"))
    assert chunk % 1024 == 0 and 2048 <= chunk <= 65_536
    assert chunk == 2048 or chunk * queries * 4 <= 64 << 20
    assert chunk == 65_536 or (chunk + 1024) * queries * 4 > 64 << 20  # and not smaller than that asks for
    assert chunk_for(queries, torch.device("cpu")) == 2048


def test_the_chunks_of_a_cpu_and_of_a_gpu_give_the_same_result():
    query, key, negatives = inputs(4, 10_000, 8)
    results = []
    for device in ("cpu", "cuda"):
        ours = query.clone().requires_grad_()
        loss, hit = infonce(ours, key, negatives, 0.07, chunk_for(4, torch.device(device)))
        loss.sum().backward()
        results.append((loss.detach(), hit, ours.grad))
    torch.testing.assert_close(*results)
    assert torch.equal(infonce(query, key, negatives, 0.07)[0], results[0][0])  # by default the device decides


def test_steps_equal_the_papers_pseudo_code():
    """arXiv 1911.05722, algorithm 1, from the features on, with a queue that wraps around."""
    n, k, d, temperature = 5, 12, 19, 0.07
    queue = Queue(k, d).double()
    queue_DK, pointer = queue.queue_KD.T.clone(), 0
    for step in range(4):
        ours, keys, _ = inputs(n, 1, d, seed=step)
        q = ours.clone().requires_grad_()
        l_pos = torch.bmm(q.view(n, 1, d), keys.view(n, d, 1)).view(n, 1)
        l_neg = torch.mm(q.view(n, d), queue_DK.view(d, k))
        logits = torch.cat([l_pos, l_neg], dim=1)
        expected = F.cross_entropy(logits / temperature, torch.zeros(n, dtype=torch.long))
        expected.backward()
        for column in keys:
            queue_DK = torch.cat([queue_DK[:, :pointer], column[:, None], queue_DK[:, pointer + 1 :]], dim=1)
            pointer = (pointer + 1) % k
        ours.requires_grad_()
        loss, hit = infonce(ours, keys, queue.negatives(), temperature)
        queue.enqueue(keys)
        loss.mean().backward()
        torch.testing.assert_close(loss.mean(), expected)
        torch.testing.assert_close(ours.grad, q.grad)
        torch.testing.assert_close(queue.negatives(), queue_DK.T)
        assert torch.equal(hit, logits.argmax(1) == 0) and queue.pointer.item() == pointer


@pytest.mark.parametrize("loss", [lambda *a: infonce(*a, 3)[0], lambda *a: reference.infonce(*a)[0]])
@pytest.mark.parametrize("temperature", [0.2, 5.0])
def test_gradcheck(loss, temperature):
    query, key, negatives = inputs(4, 11, 6)
    query.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: loss(q, key, negatives, temperature), query, check_undefined_grad=False)


def test_float32_is_close_to_float64_at_extreme_temperature():
    query, key, negatives = inputs(8, 1000, 128, torch.float32)
    loss, _ = infonce(query, key, negatives, 1e-3)
    expected, _ = reference.infonce(query.double(), key.double(), negatives.double(), 1e-3)
    # logits reach 1000 and float32 has 24 bits: errors of 1e3 · 2^-22 are rounding
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-3)


def test_a_gradient_below_the_rounding_of_a_key_is_still_right():
    query, _, negatives = inputs(3, 50, 32, torch.float32)
    ours, theirs = query.clone().requires_grad_(), query.double().requires_grad_()
    infonce(ours, query, negatives, 0.03)[0].sum().backward()
    reference.infonce(theirs, query.double(), negatives.double(), 0.03)[0].sum().backward()
    assert 1e-12 < theirs.grad.norm(dim=1).min() < torch.finfo(torch.float32).eps / 0.03
    # logits reach 33, and their rounding to float32 is a relative error of the gradient
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-13)


def test_equal_keys_give_the_log_of_their_number():
    query, key, _ = inputs(3, 1, 8)
    loss, hit = infonce(key, key, key[:1].expand(7, 8) * 0 + query[:1], 1e9)
    torch.testing.assert_close(loss, torch.full((3,), 8.0, dtype=torch.float64).log(), atol=1e-8, rtol=0)
    assert hit.tolist() == [True] * 3


def test_a_positive_equal_to_all_negatives_is_a_hit():
    key = torch.full((3, 4), 0.5)
    loss, hit = infonce(key, key, key[:1].expand(9, 4), 0.07, 4)
    torch.testing.assert_close(loss, torch.full((3,), 10.0).log())
    assert hit.tolist() == [True] * 3


def test_a_queue_in_bfloat16_is_read_as_it_is_stored():
    query, key, negatives = inputs(5, 37, 19, torch.float32)
    stored = negatives.bfloat16()
    loss, _ = infonce(query, key, stored, 0.07)
    torch.testing.assert_close(loss, infonce(query, key, stored.float(), 0.07)[0])


def test_half_precision_queries_are_computed_in_float32_and_get_their_own_gradient():
    query, key, negatives = (t.bfloat16() for t in inputs(5, 37, 19))
    query.requires_grad_()
    loss, _ = infonce(query, key, negatives, 0.07)
    expected, _ = reference.infonce(query.float(), key.float(), negatives.float(), 0.07)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.sum().backward()
    assert query.grad.dtype == torch.bfloat16


def test_dictionary_may_change_before_backward():
    query, key, negatives = inputs(4, 9, 6)
    first, second = query.clone().requires_grad_(), query.clone().requires_grad_()
    infonce(first, key, negatives, 0.1)[0].sum().backward()
    loss = infonce(second, key, negatives, 0.1)[0].sum()
    negatives.zero_()
    loss.backward()
    assert torch.equal(first.grad, second.grad)


def test_a_feature_that_is_no_number_reaches_the_loss():
    query, key, negatives = inputs(4, 9, 6)
    query[1, 2] = torch.nan
    assert infonce(query, key, negatives, 0.1)[0].isnan().tolist() == [False, True, False, False]


def test_tensors_that_do_not_fit_are_named():
    query, key, negatives = inputs(4, 9, 6)
    with pytest.raises(ValueError, match=r"\(4, 6\), \(4, 6\), \(9, 5\)"):
        infonce(query, key, negatives[:, :5], 0.1)
    with pytest.raises(ValueError, match=r"\(0, 6\).*none of them empty"):
        infonce(query, key, negatives[:0], 0.1)
    with pytest.raises(ValueError, match=r"torch.float64 and torch.float32; give both of one float dtype"):
        infonce(query, key.float(), negatives, 0.1)
    with pytest.raises(ValueError, match=r"negatives are of torch\.float16; store them in float32"):
        infonce(query, key, negatives.half(), 0.1)
    with pytest.raises(ValueError, match=r"\['cpu', 'cpu', 'meta'\]; move them to one device"):
        infonce(query, key, negatives.to("meta"), 0.1)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be above 0"):
            infonce(query, key, negatives, temperature)
    with pytest.raises(ValueError, match="chunk is 0"):
        infonce(query, key, negatives, 0.1, 0)
