"""Checks of the Triton kernels, run by test_triton.py: on a GPU, or with TRITON_INTERPRET=1 on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastmoco.kernels import enqueue_triton, infonce_triton, reference

INTERPRETED = infonce_triton.INTERPRETED
DEVICE = "cpu" if INTERPRETED else "cuda"


def unit(rows, dim, seed):
    keys = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(keys, dim=1).to(DEVICE)


# the interpreter has no GPU to choose tiles for; by each of these, all that can be chosen are
CAPABILITIES = [(8, 0), (9, 0), (10, 0), (8, 6)] if INTERPRETED else [None]


def forward(query, key, negatives, temperature, programs, capability=CAPABILITIES[0]):
    return infonce_triton.forward(query, key, negatives, temperature, programs, capability)


def tolerances(parts, temperature):
    """Of the loss, and of its gradient. A rounded logit is a wrong weight, and the gradient is a mean over τ."""
    # three parts: the sum of D products; else what two parts leave (the interpreter cuts off where a GPU rounds)
    logit = (1e-6 if parts == 3 else 3e-5) / temperature
    return logit + 1e-6, (logit + 1e-6) / temperature


def check(query, key, negatives, temperature, programs, capability=CAPABILITIES[0]):
    exact = query.double().requires_grad_()
    expected, expected_hit = reference.infonce(exact, key.double(), negatives.double(), temperature)
    expected.sum().backward()
    loss, hit, slope = forward(query, key, negatives, temperature, programs, capability)
    loose_loss, loose_slope = tolerances(infonce_triton.parts(negatives.dtype), temperature)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=loose_loss)
    torch.testing.assert_close(slope.double(), exact.grad, rtol=1e-5, atol=loose_slope)
    assert torch.equal(hit, expected_hit)


CASES = [
    *[(5, 37, 19, temperature, 8) for temperature in (0.07, 1e-3, 100.0)],
    *[(2, 200, 7, 0.07, programs) for programs in (1, 2, 100)],  # walked by one program, by two, a program a tile
    *[(1, 1, 1, 0.07, 8), (3, 1, 19, 0.07, 8), (66, 70, 8, 0.07, 8), (18, 65, 128, 0.07, 8)],
]
if not INTERPRETED:
    CASES += [(n, k, d, t, None) for n, k, d in [(256, 65_536, 128), (500, 12_345, 100)] for t in (0.07, 1e-3, 100.0)]
WIDE_CASES = [(18, 65, 130, 0.07, 8), *([] if INTERPRETED else [(500, 12_345, 256, 0.07, None)])]
STORED_CASES = [(torch.float32, case) for case in CASES] + [(torch.bfloat16, case) for case in CASES + WIDE_CASES]
# all cases by one choice of tiles; by the others those with partial tiles, several tiles, and several programs
OF_TILES = [case for case in STORED_CASES if case[1] in [(5, 37, 19, 0.07, 8), (66, 70, 8, 0.07, 8), *WIDE_CASES]]


@pytest.mark.parametrize(
    ("capability", "stored", "case"),
    [(which, *case) for which in CAPABILITIES for case in (STORED_CASES if which is CAPABILITIES[0] else OF_TILES)],
)
def test_loss_equals_reference(stored, case, capability):
    n, k, d, temperature, programs = case
    check(unit(n, d, 0), unit(n, d, 1), unit(k, d, 2).to(stored), temperature, programs, capability)


@pytest.fixture
def less_precise():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_two_parts_of_each_number_keep_16_bits(less_precise, capability):
    assert infonce_triton.parts(torch.float32) == 2
    check(unit(18, 100, 0), unit(18, 100, 1), unit(65, 100, 2), 0.07, 8, capability)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_equal_keys(stored):
    key = torch.full((3, 4), 0.5, device=DEVICE)
    loss, hit, slope = forward(key, key, key[:1].expand(90, 4).to(stored), 0.07, 4)
    loose_loss, loose_slope = tolerances(infonce_triton.parts(stored), 0.07)
    torch.testing.assert_close(loss, torch.full_like(loss, 91.0).log(), rtol=0, atol=loose_loss)
    assert slope.abs().max() < loose_slope
    if (
        stored == torch.float32 and INTERPRETED
    ):  # else the two logits are rounded differently, and either may win the tie
        assert hit.all()


def test_one_key_that_beats_the_positive_is_a_miss():
    query, negatives = unit(5, 16, 0), unit(100, 16, 2)
    negatives[77] = query[3]
    _, hit, _ = forward(query, unit(5, 16, 1), negatives, 0.07, 4)
    assert not hit[3]
    _, hit, _ = forward(query, query, negatives * 0.9, 0.07, 4)
    assert hit.all()


def test_a_feature_that_is_no_number_reaches_the_loss():
    query, negatives = unit(4, 16, 0), unit(100, 16, 2)
    query[1, 2] = torch.nan
    loss, _, _ = forward(query, unit(4, 16, 1), negatives, 0.07, 4)
    assert loss.isnan().tolist() == [False, True, False, False]


def test_half_precision_queries():
    query, key, negatives = unit(5, 19, 0).half(), unit(5, 19, 1).half(), unit(37, 19, 2)
    check(query, key, negatives, 0.07, 4)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "dim", "counts"),
    [(37, 19, (5, 30, 80, 37)), (1, 5, (1, 3)), (8, 128, (8, 8, 3)), (64, 1, (40, 0, 40)), (20, 300, (13, 13))],
)
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.float64])
def test_ring_equals_writing_one_key_after_another(size, dim, counts, stored, given):
    queue = unit(size, dim, 0).to(stored)
    ring, place = queue.double(), 0
    pointer, seen, ticket = (torch.zeros((), dtype=t, device=DEVICE) for t in (torch.int64, torch.int64, torch.int32))
    for step, count in enumerate(counts):
        keys = (3 * unit(count, dim, step)).to(given)
        enqueue_triton.write(queue, pointer, seen, ticket, keys)
        ring, place = reference.enqueue(ring, keys.double(), place)
        # one place of bfloat16, which the interpreter cuts off where a GPU rounds
        torch.testing.assert_close(queue.double(), ring, rtol=0, atol=3e-7 + (stored == torch.bfloat16) * 2**-8)
        assert (pointer.item(), seen.item(), ticket.item()) == (place, sum(counts[: step + 1]), 0)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another")
def test_many_programs_all_read_the_pointer_before_it_moves():
    """A program that read the pointer after it had moved would write to the wrong rows."""
    queue = torch.zeros(50_021, 128, device=DEVICE)
    pointer, seen, ticket = (torch.zeros((), dtype=t, device=DEVICE) for t in (torch.int64, torch.int64, torch.int32))
    keys = unit(40_000, 128, 0)
    for _ in range(200):
        before = pointer.clone()
        enqueue_triton.write(queue, pointer, seen, ticket, keys)
        places = (before + torch.arange(len(keys), device=DEVICE)) % len(queue)
        torch.testing.assert_close(queue[places], keys, rtol=0, atol=3e-7)
    assert (pointer.item(), ticket.item()) == (200 * len(keys) % len(queue), 0)
