from __future__ import annotations

import pytest
import torch

from fastmoco.model.dictionary import Queue


@pytest.mark.parametrize("size", [1, 5, 8, 13])
@pytest.mark.parametrize("counts", [[3, 3, 3], [1] * 20, [8, 5, 2], [30, 4], [13, 26]])
def test_ring_equals_writing_one_key_after_another(size, counts):
    queue = Queue(size, 4)
    ring, pointer, total = queue.queue_KD.clone(), 0, 0
    for count in counts:
        keys = torch.arange(total, total + count).float()[:, None].expand(count, 4)
        queue.enqueue(keys)
        for key in keys:
            ring[pointer] = key
            pointer = (pointer + 1) % size
        total += count
        assert torch.equal(queue.queue_KD, ring)
        assert queue.pointer.item() == pointer
        assert queue.fill().item() == pytest.approx(min(total / size, 1))


def test_starts_with_unit_vectors():
    torch.testing.assert_close(Queue(9, 16).queue_KD.norm(dim=1), torch.ones(9))


def test_state_holds_ring_and_pointer():
    queue, other = Queue(7, 3), Queue(7, 3)
    queue.enqueue(torch.ones(4, 3))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(torch.full((5, 3), 2.0))
    assert torch.equal(queue.queue_KD, other.queue_KD)
    assert queue.pointer.item() == other.pointer.item() == 2
