"""One rank of agreement.py: torchrun -m _agreement REPEATS."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from fastmoco.ranks.vote import Ballot, Votes
from fastmoco.ranks.world import world

_BLOCK = 50  # agreements of one way before the other's turn


def main() -> None:
    """Time both ways in turn; rank 0 prints the milliseconds of each agreement."""
    repeats = int(sys.argv[1])
    torch.set_num_threads(1)  # ranks may outnumber the cores
    with world() as here:
        votes, ring = Votes(here), dist.new_group(backend="gloo")
        assert isinstance(ring, dist.ProcessGroup)
        numbers = torch.zeros(2, dtype=torch.int64)
        ways: dict[str, Callable[[], object]] = {
            "vote": lambda: votes(Ballot(), 0),
            "all-reduce": lambda: dist.all_reduce(numbers, dist.ReduceOp.MAX, group=ring),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for block in range(-1, -(-repeats // _BLOCK)):  # the first connects the ranks
            for name, agree in ways.items():
                dist.barrier()
                times = [_milliseconds(agree) for _ in range(_BLOCK)]
                taken[name] += times if block >= 0 else []
        if here.is_main:
            print(json.dumps(taken))


def _milliseconds(agree: Callable[[], object]) -> float:
    began = time.perf_counter()
    agree()
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
