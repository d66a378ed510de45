"""Writing new keys into the queue's ring buffer: normalise, cast, write with wrap-around, advance the pointer.

The pointer stays on the device. Reading it on the host would synchronise at every step.

N: new keys, K: keys in the ring, D: feature dimension.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fastmoco.kernels.dispatch import implementation

_QUEUE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def _store(
    queue_KD: torch.Tensor, pointer: torch.Tensor, seen: torch.Tensor, ticket: torch.Tensor, keys_ND: torch.Tensor
) -> None:
    if implementation(queue_KD.device, queue_KD.dtype, queue_KD.shape[1]) == "triton":
        from fastmoco.kernels import enqueue_triton

        enqueue_triton.write(queue_KD, pointer, seen, ticket, keys_ND)
    else:
        _write(queue_KD, pointer, seen, keys_ND)


# for torch.compile alone, as in infonce_operator.py
_operator = torch.library.custom_op("fastmoco::enqueue", _store, mutates_args=("queue_KD", "pointer", "seen", "ticket"))


@_operator.register_fake
def _(queue_KD, pointer, seen, ticket, keys_ND) -> None:
    return None


def _write(queue_KD: torch.Tensor, pointer: torch.Tensor, seen: torch.Tensor, keys_ND: torch.Tensor) -> None:
    size, count = queue_KD.shape[0], keys_ND.shape[0]
    # of more than K keys the older ones would be overwritten at once, and index_copy_ leaves the order of writes to
    # one row undefined
    newest = keys_ND[-size:].to(torch.promote_types(keys_ND.dtype, torch.float32))
    # rows by index, not a slice: a slice would need the pointer on the host
    offsets = torch.arange(count - newest.shape[0], count, device=pointer.device)
    queue_KD.index_copy_(0, (pointer + offsets) % size, F.normalize(newest, dim=1).to(queue_KD.dtype))
    pointer.add_(count).remainder_(size)
    seen.add_(count)


def enqueue(
    queue_KD: torch.Tensor, pointer: torch.Tensor, seen: torch.Tensor, ticket: torch.Tensor, keys_ND: torch.Tensor
) -> None:
    """Write normalised keys over the oldest rows of the ring, in place, and advance its pointer.

    Of more than K keys the newest K remain, in the rows that writing all keys one by one would have given them.

    Args:
        queue_KD: The ring [K, D], contiguous, float32, bfloat16 or float64.
        pointer: Row of the oldest key, int64 scalar on the same device.
        seen: Number of keys written so far, int64 scalar on the same device.
        ticket: Counter of finished Triton programs, int32 scalar on the same device; one per ring, zero between calls.
        keys_ND: The keys [N, D] from the oldest to the newest, any float dtype and any norm.

    Raises:
        ValueError: Shapes, dtypes or devices do not match.
    """
    shapes = tuple(queue_KD.shape), tuple(keys_ND.shape)
    if queue_KD.dim() != 2 or keys_ND.dim() != 2 or queue_KD.shape[1] != keys_ND.shape[1] or queue_KD.shape[0] < 1:
        raise ValueError(
            f"queue and keys have shapes {shapes[0]} and {shapes[1]}; give [K, D] with K of at least 1, and [N, D]"
        )
    if queue_KD.dtype not in _QUEUE_DTYPES or not keys_ND.is_floating_point():
        raise ValueError(
            f"queue and keys are of {queue_KD.dtype} and {keys_ND.dtype}; "
            "store the queue in float32, bfloat16 or float64, and give keys of a float dtype"
        )
    if not queue_KD.is_contiguous():
        raise ValueError(f"the queue has strides {queue_KD.stride()}; store it with .contiguous()")
    state = {"pointer": (pointer, torch.int64), "seen": (seen, torch.int64), "ticket": (ticket, torch.int32)}
    for name, (value, dtype) in state.items():
        if value.dtype != dtype or value.numel() != 1:
            raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}; give one number of {dtype}")
    places = {value.device for value in (queue_KD, pointer, seen, ticket, keys_ND)}
    if len(places) > 1:
        raise ValueError(f"the tensors are on {sorted(map(str, places))}; move them to the queue's device")
    store = _operator if torch.compiler.is_compiling() else _store
    store(queue_KD, pointer, seen, ticket, keys_ND)
