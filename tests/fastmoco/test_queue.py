from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastmoco.kernels import enqueue, reference
from fastmoco.model.dictionary import Queue


def new_keys(count, dim=4, dtype=torch.float32):
    return 3 * torch.randn(count, dim, dtype=dtype, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("size", [1, 5, 8, 13])
@pytest.mark.parametrize("counts", [[3, 3, 3], [1] * 20, [8, 5, 2], [30, 4], [13, 26], [0, 2]])
def test_ring_equals_writing_one_key_after_another(size, counts):
    queue = Queue(size, 4)
    ring, pointer = queue.queue_KD.double(), 0
    for step, count in enumerate(counts):
        keys = new_keys(count)
        queue.enqueue(keys)
        ring, pointer = reference.enqueue(ring, keys.double(), pointer)
        # unit vectors, each rounded a few times to float32
        torch.testing.assert_close(queue.queue_KD.double(), ring, rtol=0, atol=3e-7)
        assert queue.pointer.item() == pointer
        assert queue.fill().item() == pytest.approx(min(sum(counts[: step + 1]) / size, 1))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keys_of_any_dtype_are_stored_in_the_queues(given, stored):
    queue = Queue(7, 19).to(stored)
    keys = new_keys(5, 19).to(given)
    queue.enqueue(keys)
    expected = F.normalize(keys.double(), dim=1)
    assert queue.queue_KD.dtype == stored
    # rounding to the queue's dtype, after float32 arithmetic at least
    tolerance = torch.finfo(stored).eps / 2 + (0 if given == torch.float64 else 3e-7)
    assert (queue.queue_KD[:5].double() - expected).abs().max() <= tolerance


def test_a_key_of_zeros_stays_zero():
    queue = Queue(3, 4)
    queue.enqueue(torch.zeros(2, 4))
    assert queue.queue_KD[:2].tolist() == [[0.0] * 4] * 2


def test_starts_with_unit_vectors():
    torch.testing.assert_close(Queue(9, 16).queue_KD.norm(dim=1), torch.ones(9))


def test_state_holds_ring_and_pointer():
    queue, other = Queue(7, 3), Queue(7, 3)
    queue.enqueue(torch.ones(4, 3))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(-torch.ones(5, 3))
    assert torch.equal(queue.queue_KD, other.queue_KD)
    assert queue.pointer.item() == other.pointer.item() == 2


def test_tensors_that_do_not_fit_are_named():
    state = [torch.zeros((), dtype=dtype) for dtype in (torch.int64, torch.int64, torch.int32)]
    queue, keys = torch.zeros(5, 4), torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(2, 3\); give \[K, D\]"):
        enqueue(queue, *state, keys[:, :3])
    with pytest.raises(ValueError, match=r"torch\.float16 and torch\.float32; store the queue in float32"):
        enqueue(queue.half(), *state, keys)
    with pytest.raises(ValueError, match=r"torch\.float32 and torch\.int64; .* give keys of a float dtype"):
        enqueue(queue, *state, keys.long())
    with pytest.raises(ValueError, match=r"strides \(1, 5\); store it with .contiguous"):
        enqueue(torch.zeros(4, 5).T, *state, keys)
    with pytest.raises(ValueError, match=r"ticket is torch\.int64 \(\); give one number of torch\.int32"):
        enqueue(queue, *state[:2], state[0], keys)
    with pytest.raises(ValueError, match=r"\['cpu', 'meta'\]; move them to the queue's device"):
        enqueue(queue, *state, keys.to("meta"))
