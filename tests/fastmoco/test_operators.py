"""Loss and ring as operators of torch: their schemas, and torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from fastmoco.kernels import enqueue, implementation, infonce
from fastmoco.model.dictionary import Queue


def features(rows, dim=7):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)), dim=1)


def test_operators_keep_their_contracts():
    """Schema, fake kernels, autograd, static and dynamic shapes: the checks of torch.library.opcheck."""
    query, key, ring = features(5).requires_grad_(), features(6)[:5], features(11)
    state = [torch.zeros((), dtype=dtype) for dtype in (torch.int64, torch.int64, torch.int32)]
    torch.library.opcheck(torch.ops.fastmoco.infonce.default, (query, key, ring, 0.1, 4, None))
    torch.library.opcheck(torch.ops.fastmoco.infonce.default, (query, key, ring, 0.1, 4, 2))
    torch.library.opcheck(torch.ops.fastmoco.enqueue.default, (ring, *state, key))


def operators_called(function):
    """Names of fastmoco's operators that `function` calls."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        function()
    return {event.name for event in seen.events() or () if event.name.startswith("fastmoco::")}


def test_operators_are_for_compiled_code_alone():
    queue, query, key = Queue(11, 7), features(5).requires_grad_(), features(6)[:5]
    torch.compiler.reset()
    compiled = torch.compile(contrast, fullgraph=True, backend="aot_eager")
    compiled(query, key, queue)
    assert operators_called(lambda: compiled(query, key, queue)) == {"fastmoco::infonce", "fastmoco::enqueue"}
    assert not operators_called(lambda: contrast(query, key, queue))


def contrast(query, key, queue):
    loss, hit = infonce(query, key, queue.negatives(), 0.1)
    enqueue(queue.queue_KD, queue.pointer, queue.seen, queue.ticket, key)
    return loss.mean(), hit.float().mean()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_a_break(backend):
    torch.compiler.reset()
    compiled = torch.compile(contrast, fullgraph=True, backend=backend)
    ours, theirs = Queue(11, 7), Queue(11, 7)
    theirs.load_state_dict(ours.state_dict())
    for rows in (5, 8):
        one, two = features(rows).requires_grad_(), features(rows).requires_grad_()
        key = features(rows + 20)[:rows]
        loss, accuracy = compiled(one, key, ours)
        expected, expected_accuracy = contrast(two, key, theirs)
        loss.backward()
        expected.backward()
        assert torch.equal(loss, expected) and torch.equal(accuracy, expected_accuracy)
        assert torch.equal(one.grad, two.grad)
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_a_cpu_uses_the_torch_implementation():
    assert implementation(torch.device("cpu"), torch.float32, 128) == "torch"
