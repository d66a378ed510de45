"""InfoNCE in Triton. The dictionary is split among programs: tiles of queries alone are too few to fill a GPU.

For a tile of queries and a stretch of the dictionary, `walk_kernel` computes the largest logit, the sum of exponentials
and the weighted sum of the negatives. `combine_kernel` joins the stretches and adds the positive. Logits are in units
of log 2 (queries are scaled by log2 e / τ), because the hardware computes exp2. No sum is atomic, so equal input gives
equal bits.

All sums are float32. All products are of bfloat16 numbers, because tensor cores read those from shared memory in either
layout; of TF32 numbers, one of the two products would first rearrange the keys in registers. float32 numbers are split
into bfloat16 parts of 8 bits each:

- bfloat16 negatives have one part, the other factor two. Its error of 16 bits is small beside the keys' of 8.
- float32 negatives and the other factor have three, which are exact. The six largest of their nine products leave the
  error of float32. Where torch.set_float32_matmul_precision is not "highest", both have two, with three products.

N: queries, K: negatives, D: feature dimension, S: stretches.
"""

# pyright does not see the types that Triton's decorators make
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernels on a CPU. It cannot multiply bfloat16, which is why HALF exists."""


@triton.jit
def _parts(x, HALF: tl.constexpr):
    """Split float32 numbers into three bfloat16 parts, largest first; their sum is exact."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return high.to(HALF), middle.to(HALF), low.to(HALF)


@triton.jit
def _dot(a_0, a_1, a_2, b_0, b_1, b_2, total, PARTS: tl.constexpr):
    """Total + a · b. Of b the first PARTS parts count, of a as many, but at least two."""
    # the largest product last, so that less of the others is lost beside it; grouped by the part of b, which frees its
    # registers early (in other orders ptxas spills some)
    if PARTS == 3:
        total = tl.dot(a_0, b_2, total)
        total = tl.dot(a_1, b_1, total)
    if PARTS >= 2:
        total = tl.dot(a_0, b_1, total)
    if PARTS == 3:
        total = tl.dot(a_2, b_0, total)
    total = tl.dot(a_1, b_0, total)
    return tl.dot(a_0, b_0, total)


@triton.jit
def walk_kernel(
    query, negatives, largest, total, weighted, scale, N, K, D, stretch,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Contrast tile program_id(0) of the queries with the stretch of negatives that starts at stretch · program_id(1).

    Queries vary fastest in the grid: programs that run together read the same negatives, from the L2 cache.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    split = tl.program_id(1).to(tl.int64)  # offsets of large dictionaries exceed int32
    inside = (rows[:, None] < N) & (dims[None, :] < D)
    q = tl.load(query + rows[:, None] * D + dims[None, :], mask=inside, other=0.0).to(tl.float32) * scale
    q_0, q_1, q_2 = _parts(q, HALF)
    top = tl.full([BLOCK_N], -float("inf"), tl.float32)
    mass = tl.zeros([BLOCK_N], tl.float32)
    mean = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    first = split * stretch
    for start in range(first, tl.minimum(first + stretch, K), BLOCK_K):
        places = start + tl.arange(0, BLOCK_K)
        there = places < K
        part = tl.load(
            negatives + places[:, None] * D + dims[None, :], mask=there[:, None] & (dims[None, :] < D), other=0.0
        )
        if PARTS == 1:
            k_0 = part.to(HALF)
            k_1, k_2 = k_0, k_0  # not used
        else:
            k_0, k_1, k_2 = _parts(part, HALF)
        logits = _dot(
            q_0, q_1, q_2, tl.trans(k_0), tl.trans(k_1), tl.trans(k_2), tl.zeros([BLOCK_N, BLOCK_K], tl.float32), PARTS
        )
        logits = tl.where(there[None, :], logits, -float("inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        weights = tl.exp2(logits - new_top[:, None])
        rescale = tl.exp2(top - new_top)
        mass = mass * rescale + tl.sum(weights, axis=1)
        w_0, w_1, w_2 = _parts(weights, HALF)
        mean = _dot(w_0, w_1, w_2, k_0, k_1, k_2, mean * rescale[:, None], PARTS)
        top = new_top
    out = split * N + rows
    tl.store(largest + out, top, mask=rows < N)
    tl.store(total + out, mass, mask=rows < N)
    tl.store(weighted + out[:, None] * D + dims[None, :], mean, mask=inside)


@triton.jit
def combine_kernel(
    query, key, largest, total, weighted, loss, hit, slope, scale, temperature, N, D, S,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Loss, hit and gradient of query program_id(0) from its S stretches."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    inside = dims < D
    q = tl.load(query + row * D + dims, mask=inside, other=0.0).to(tl.float32) * scale
    k = tl.load(key + row * D + dims, mask=inside, other=0.0).to(tl.float32)
    positive = tl.sum(q * k, axis=0)
    tops = tl.full([BLOCK_S], -float("inf"), tl.float32)
    for start in range(0, S, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        tops = tl.maximum(tops, tl.load(largest + splits * N + row, mask=splits < S, other=-float("inf")))
    top = tl.max(tops, axis=0)
    masses = tl.zeros([BLOCK_S], tl.float32)
    mean = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, S, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        out = splits * N + row
        share = tl.exp2(tl.load(largest + out, mask=splits < S, other=-float("inf")) - top)
        masses += share * tl.load(total + out, mask=splits < S, other=0.0)
        there = (splits[:, None] < S) & inside[None, :]
        part = tl.load(weighted + out[:, None] * D + dims[None, :], mask=there, other=0.0)
        mean += tl.sum(share[:, None] * part, axis=0)
    mass = tl.sum(masses, axis=0)
    excess = (top + tl.log2(mass) - positive) * 0.6931471805599453  # ln 2: back from units of log 2
    tl.store(loss + row, tl.maximum(excess, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(excess))))
    tl.store(hit + row, positive >= top)
    tl.store(slope + row * D + dims, (mean / mass - k) * (tl.sigmoid(excess) / temperature), mask=inside)


COMBINED_S = 16
"""Stretches that a program of `combine_kernel` reads at a time."""
_TILES = {
    "sm_80": ((16, 32, 2), (64, 64, 2), (32, 32, 2)),
    "sm_90": ((64, 32, 2), (64, 64, 3), (64, 64, 2)),
    "sm_100": ((16, 32, 2), (64, 32, 2), (32, 64, 2)),
    "other": ((16, 32, 2), (64, 32, 2), (16, 32, 2)),
}
"""Queries and keys of a tile, and stages of the loads, for float32 keys, for bfloat16 keys, and for bfloat16 keys of
more than 128 dimensions. Chosen by what ptxas reports (benchmarks/kernel_resources.py), not yet by times on a GPU: no
registers spill, the loads of the keys are asynchronous, and two programs fit on a multiprocessor at once (one for the
last of sm_90). `other` are Ampere, Ada and Blackwell GPUs with 100 KiB of shared memory in place of 164 or more.

On sm_90, 64 queries are the least of a wgmma. On sm_100 the tensor cores sum in a memory of their own, 512 columns of a
multiprocessor, and Triton allocates columns for each tl.dot: the twelve of float32 keys do not fit, so their tile has
16 queries, which Triton multiplies by mma.sync.
"""


def tiles(dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> dict[str, int]:
    """Sides of the tiles for negatives of D dimensions on a GPU, the warps of a program, and the stages of its loads.

    Few queries have the tiles of many: the keys of a tile cost more than its queries.

    Args:
        dim: The feature dimension D, at most `fastmoco.kernels.dispatch.MAX_DIM` of the dtype.
        dtype: The negatives' dtype.
        capability: The GPU's compute capability.
    """
    names = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
    column = 0 if dtype == torch.float32 else 1 if dim <= 128 else 2
    rows, keys, stages = _TILES[names.get(capability, "other")][column]
    block_dim = max(16, triton.next_power_of_2(dim))  # 16: the least side of tl.dot
    return {"BLOCK_N": rows, "BLOCK_K": keys, "BLOCK_D": block_dim, "num_warps": 4, "num_stages": stages}


def parts(dtype: torch.dtype) -> int:
    """Bfloat16 parts of each number in the dictionary."""
    if dtype == torch.bfloat16:
        return 1
    return 3 if torch.get_float32_matmul_precision() == "highest" else 2


def forward(
    query_ND: torch.Tensor,
    key_ND: torch.Tensor,
    negatives_KD: torch.Tensor,
    temperature: float,
    programs: int | None = None,
    capability: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [N], hit [N] and gradient [N, D] as in `fastmoco.kernels.infonce`; does not check its arguments.

    Args:
        query_ND: Queries [N, D].
        key_ND: Positive keys [N, D].
        negatives_KD: The dictionary [K, D], float32 or bfloat16.
        temperature: τ.
        programs: Approximate number of programs; default: two for each multiprocessor.
        capability: Compute capability to choose the tiles for; default: the GPU's.
    """
    (count, dim), size = query_ND.shape, negatives_KD.shape[0]
    query_ND, key_ND, negatives_KD = (t.contiguous() for t in (query_ND, key_ND, negatives_KD))
    wanted = programs or 2 * torch.cuda.get_device_properties(query_ND.device).multi_processor_count
    options = tiles(dim, negatives_KD.dtype, capability or torch.cuda.get_device_capability(query_ND.device))
    row_tiles, key_tiles = triton.cdiv(count, options["BLOCK_N"]), triton.cdiv(size, options["BLOCK_K"])
    stretch = triton.cdiv(key_tiles, min(key_tiles, max(1, wanted // row_tiles))) * options["BLOCK_K"]
    splits = triton.cdiv(size, stretch)
    new = torch.empty((), dtype=torch.float32, device=query_ND.device).new_empty
    largest_SN, total_SN, weighted_SND = new(splits, count), new(splits, count), new(splits, count, dim)
    loss_N, hit_N, slope_ND = new(count), new(count, dtype=torch.bool), new(count, dim)
    scale = math.log2(math.e) / temperature
    with torch.cuda.device_of(query_ND):
        walk_kernel[(row_tiles, splits)](
            query_ND, negatives_KD, largest_SN, total_SN, weighted_SND, scale, count, size, dim, stretch, **options,
            PARTS=parts(negatives_KD.dtype), HALF=tl.float32 if INTERPRETED else tl.bfloat16,
        )  # fmt: skip
        combine_kernel[(count,)](
            query_ND, key_ND, largest_SN, total_SN, weighted_SND, loss_N, hit_N, slope_ND, scale, temperature,
            count, dim, splits, BLOCK_S=COMBINED_S, BLOCK_D=options["BLOCK_D"],
        )  # fmt: skip
    return loss_N, hit_N, slope_ND
