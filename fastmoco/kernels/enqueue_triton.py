"""The queue's update in one Triton launch.

Every program reads the pointer and one of them must advance it, but only after all have read it, and programs run in
any order. So each program takes a ticket once it has read and written; the one that takes the last ticket advances the
pointer and resets the counter. Two things make this safe. The barrier keeps a program from taking its ticket before all
of its threads have read the pointer. The atomic's acquire and release order every program's read before the last
program's store.

The ticket is an integer, and nothing else is atomic: equal input gives equal bits.

N: new keys, K: keys in the ring, D: feature dimension.
"""

# pyright does not see the types that Triton's decorators make
# pyright: reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

ELEMENTS = 4096
"""Values per program, which holds at least one key: 32 in each of the 128 threads of Triton's default 4 warps."""


@triton.jit
def write_kernel(
    queue, pointer, seen, ticket, keys, N, K, D, first, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Write rows first … N − 1 of the keys into the ring, ROWS of them per program."""
    oldest = tl.load(pointer)
    rows = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < N) & (dims[None, :] < D)
    values = tl.load(keys + rows[:, None].to(tl.int64) * D + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, axis=1))
    unit = values / tl.maximum(length, 1e-12)[:, None]  # as torch.nn.functional.normalize does
    slots = (oldest + rows) % K  # no two programs write one slot: at most K rows are written
    tl.store(queue + slots[:, None] * D + dims[None, :], unit.to(queue.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # despite its name needed: see the top of the file
    done = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
    if done == tl.num_programs(0) - 1:
        tl.store(pointer, (oldest + N) % K)
        tl.store(seen, tl.load(seen) + N)
        tl.store(ticket, 0)


def write(
    queue_KD: torch.Tensor, pointer: torch.Tensor, seen: torch.Tensor, ticket: torch.Tensor, keys_ND: torch.Tensor
) -> None:
    """`fastmoco.kernels.enqueue` on CUDA; does not check its arguments."""
    count, dim = keys_ND.shape
    size = queue_KD.shape[0]
    written = min(count, size)
    if written == 0:
        return
    block_dim = triton.next_power_of_2(dim)
    rows = max(1, min(ELEMENTS // block_dim, triton.next_power_of_2(written)))
    with torch.cuda.device_of(queue_KD):
        write_kernel[(triton.cdiv(written, rows),)](
            queue_KD, pointer, seen, ticket, keys_ND.contiguous(), count, size, dim, count - written,
            ROWS=rows, BLOCK_D=block_dim,
        )  # fmt: skip
