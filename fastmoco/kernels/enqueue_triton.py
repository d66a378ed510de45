"""The ring's writing as one Triton launch.

Every program reads the pointer, and one of them must advance it, but only when all have read it: programs run in
no order. So each takes a ticket when it has read and written, and the last one to do so advances the pointer
and sets the tickets back. The barrier holds all threads of a program, each of which reads the pointer for itself,
in front of its ticket; the atomic's acquire and release put every program's read before the last one's store.

N: new keys, K: keys of the ring, D: feature dimension.
"""

# the types of Triton's language are made by its decorators, which pyright cannot see through
# pyright: reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

ELEMENTS = 4096
"""Numbers that a program holds, at least one key."""


@triton.jit
def write_kernel(
    queue, pointer, seen, ticket, keys, N, K, D, first, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Rows first … N − 1 of the keys into the ring, ROWS of them a program."""
    oldest = tl.load(pointer)
    rows = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < N) & (dims[None, :] < D)
    values = tl.load(keys + rows[:, None].to(tl.int64) * D + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, axis=1))
    unit = values / tl.maximum(length, 1e-12)[:, None]  # as torch.nn.functional.normalize does
    slots = (oldest + rows) % K
    tl.store(queue + slots[:, None] * D + dims[None, :], unit.to(queue.dtype.element_ty), mask=inside)
    tl.debug_barrier()
    done = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
    if done == tl.num_programs(0) - 1:
        tl.store(pointer, (oldest + N) % K)
        tl.store(seen, tl.load(seen) + N)
        tl.store(ticket, 0)


def write(
    queue_KD: torch.Tensor, pointer: torch.Tensor, seen: torch.Tensor, ticket: torch.Tensor, keys_ND: torch.Tensor
) -> None:
    """As `fastmoco.kernels.enqueue` says; the arguments are taken to be right."""
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
