"""One rank of a measurement: torchrun -m _communication.rank BATCH PIXELS REPEATS."""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
import torch.distributed as dist

from _communication.ways import FEATURES, WAYS, Way, counted


def main() -> None:
    """Measure as one rank; rank 0 prints the rows."""
    batch, pixels, repeats = map(int, sys.argv[1:])
    # ranks may outnumber the cores; with a thread per core in each, they would wait for one another
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shape = ranks * batch, 3, pixels, pixels
    # every rank makes all ranks' images, so that it can work out the keys it must receive without communication
    everything = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    rows = []
    for name, way in WAYS.items():
        received = _checked(way, everything, rank, batch)
        rows.append({"ranks": ranks, "way": name, **received})
    own = everything[rank * batch :][:batch].clone(memory_format=torch.channels_last)
    # in turn, so that other load on the machine falls on all ways alike
    for step in range(repeats):
        for name, way in WAYS.items():
            seconds[name].append(_timed(way, own.to(way.dtype), step))
    for row in rows:
        times = [1000 * t for t in seconds[row["way"]]]
        row["ms"] = round(statistics.median(times), 1)
        row["lowest"], row["highest"] = round(min(times), 1), round(max(times), 1)
    if rank == 0:
        print(json.dumps(rows))
    dist.destroy_process_group()


def _checked(way: Way, everything: torch.Tensor, rank: int, batch: int) -> dict[str, int]:
    """Bytes of a step; raises RuntimeError if the keys are not those of all images, or the formula is wrong."""
    expected = _encode(everything.to(way.dtype))
    own = everything[rank * batch :][:batch].to(way.dtype)
    with counted() as received:
        keys = way.keys(own, _encode, 1)
    if not torch.equal(keys, expected):
        raise RuntimeError(f"{way.label}: the keys are not those of the images")
    formula = way.formula(dist.get_world_size(), batch, everything.shape[-1])
    if received != formula:
        raise RuntimeError(f"{way.label}: rank {rank} received {received}, but the formula says {formula}")
    return received


def _encode(images: torch.Tensor) -> torch.Tensor:
    """Stand-in for the encoder, which is the same for every way: some of the pixels."""
    return images[:, 0].flatten(1)[:, :FEATURES].float().contiguous()


def _timed(way: Way, images: torch.Tensor, step: int) -> float:
    """Seconds of the slowest rank."""
    # a common start: waiting for a rank that is late is not part of the exchange
    dist.barrier()
    begun = time.perf_counter()
    way.keys(images, _encode, step)
    taken = torch.tensor(time.perf_counter() - begun)
    # a step of training ends when the slowest rank has its keys
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


if __name__ == "__main__":
    main()
