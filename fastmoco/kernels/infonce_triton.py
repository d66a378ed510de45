"""InfoNCE in Triton. The dictionary is split among programs: tiles of queries alone are too few to fill a GPU.

For a tile of queries and a stretch of the dictionary, `walk_kernel` computes the largest logit, the sum of exponentials
and the weighted sum of the negatives. `combine_kernel` joins the stretches and adds the positive. Logits are in units
of log 2 (queries are scaled by log2 e / τ), because the hardware computes exp2. No sum is atomic, so equal input gives
equal bits.

All sums are float32. bfloat16 negatives go to the tensor cores as they are; the other factor is split into two bfloat16
parts, which keep 16 of its 24 bits, so that the rounding of the stored keys to 8 bits dominates. float32 negatives are
multiplied by three TF32 products, which are as exact as float32, or by one if torch.set_float32_matmul_precision allows
it.

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
def _dot(left, right, total, PRECISION: tl.constexpr, HALF: tl.constexpr):
    """Total + left · right, for float32 `left` and for `right` in the dictionary's dtype."""
    if right.dtype == tl.bfloat16:
        # the small product first, so that less of it is lost beside the large one
        high = left.to(tl.bfloat16)
        low = (left - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(low.to(HALF), right.to(HALF), total)
        total = tl.dot(high.to(HALF), right.to(HALF), total)
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def walk_kernel(
    query, negatives, largest, total, weighted, scale, N, K, D, stretch,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Contrast tile program_id(0) of the queries with the stretch of negatives that starts at stretch · program_id(1).

    Queries vary fastest in the grid: programs that run together read the same negatives, from the L2 cache.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    split = tl.program_id(1).to(tl.int64)  # offsets of large dictionaries exceed int32
    inside = (rows[:, None] < N) & (dims[None, :] < D)
    q = tl.load(query + rows[:, None] * D + dims[None, :], mask=inside, other=0.0).to(tl.float32) * scale
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
        logits = _dot(q, tl.trans(part), tl.zeros([BLOCK_N, BLOCK_K], tl.float32), PRECISION, HALF)
        logits = tl.where(there[None, :], logits, -float("inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        weights = tl.exp2(logits - new_top[:, None])
        rescale = tl.exp2(top - new_top)
        mass = mass * rescale + tl.sum(weights, axis=1)
        mean = _dot(weights, part, mean * rescale[:, None], PRECISION, HALF)
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


def tiles(count: int, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Sides of the tiles for N queries and negatives of D dimensions, and the warps of a program.

    Larger tiles do not fit into the registers, as ptxas reports for Ampere and Hopper. Three TF32 products need twice
    the registers of bfloat16, because each factor is split into two float32 parts.
    """
    block_dim = max(16, triton.next_power_of_2(dim))  # 16: the least side of tl.dot
    half = dtype == torch.bfloat16
    rows, keys = (64, 64) if half else (32, 64)
    if block_dim > 128:
        rows, keys = rows // 2, keys // 2
    rows = min(rows, max(16, triton.next_power_of_2(count)))
    return {"BLOCK_N": rows, "BLOCK_K": keys, "BLOCK_D": block_dim, "num_warps": 4 if half else 8}


def forward(
    query_ND: torch.Tensor,
    key_ND: torch.Tensor,
    negatives_KD: torch.Tensor,
    temperature: float,
    programs: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [N], hit [N] and gradient [N, D] as in `fastmoco.kernels.infonce`; does not check its arguments.

    Args:
        query_ND: Queries [N, D].
        key_ND: Positive keys [N, D].
        negatives_KD: The dictionary [K, D], float32 or bfloat16.
        temperature: τ.
        programs: Approximate number of programs; default: two for each multiprocessor.
    """
    (count, dim), size = query_ND.shape, negatives_KD.shape[0]
    query_ND, key_ND, negatives_KD = (t.contiguous() for t in (query_ND, key_ND, negatives_KD))
    wanted = programs or 2 * torch.cuda.get_device_properties(query_ND.device).multi_processor_count
    sides = tiles(count, dim, negatives_KD.dtype)
    row_tiles, key_tiles = triton.cdiv(count, sides["BLOCK_N"]), triton.cdiv(size, sides["BLOCK_K"])
    stretch = triton.cdiv(key_tiles, min(key_tiles, max(1, wanted // row_tiles))) * sides["BLOCK_K"]
    splits = triton.cdiv(size, stretch)
    new = torch.empty((), dtype=torch.float32, device=query_ND.device).new_empty
    largest_SN, total_SN, weighted_SND = new(splits, count), new(splits, count), new(splits, count, dim)
    loss_N, hit_N, slope_ND = new(count), new(count, dtype=torch.bool), new(count, dim)
    scale = math.log2(math.e) / temperature
    precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    half = tl.bfloat16
    if INTERPRETED:
        precision, half = "ieee", tl.float32
    with torch.cuda.device_of(query_ND):
        walk_kernel[(row_tiles, splits)](
            query_ND, negatives_KD, largest_SN, total_SN, weighted_SND, scale, count, size, dim, stretch, **sides,
            PRECISION=precision, HALF=half, num_stages=2,
        )  # fmt: skip
        combine_kernel[(count,)](
            query_ND, key_ND, largest_SN, total_SN, weighted_SND, loss_N, hit_N, slope_ND, scale, temperature,
            count, dim, splits, BLOCK_S=16, BLOCK_D=sides["BLOCK_D"],
        )  # fmt: skip
    return loss_N, hit_N, slope_ND
