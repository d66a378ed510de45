"""Times of work on a device, without the host's share where the work can be captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial

import torch

Work = Callable[[], object]

_CACHE = 1 << 28  # bytes: more than the L2 cache of any GPU
_WARM_UP = 3  # runs before a capture: Triton compiles, cuDNN chooses, the allocator grows


@dataclass(frozen=True)
class Times:
    """Seconds of each run of a work, and how they were taken: "graph replays", "events" or "host clock"."""

    seconds: list[float]
    taken_by: str


def timed(
    works: Mapping[str, Work], device: torch.device, repeats: int, waiting: Container[str] = ()
) -> dict[str, Times]:
    """Time each work in turn, after a turn that is dropped.

    On a CUDA device a work is captured in a graph, and events take the time of a replay: the host's time of launching
    does not count. Before each replay the L2 cache is overwritten, as the rest of a training step would do.

    Args:
        works: functions without arguments; on a CUDA device they run on the current stream.
        device: where they run.
        repeats: timings of each.
        waiting: works that wait for the device, so that no graph can hold them; events take their time as it is.
    """
    by = dict.fromkeys(works, "host clock")
    runs = {name: partial(_by_clock, work) for name, work in works.items()}
    if device.type == "cuda":
        cache = torch.empty(_CACHE, dtype=torch.uint8, device=device)
        by = {name: "events" if name in waiting else "graph replays" for name in works}
        replays = {name: work if name in waiting else _captured(work, device) for name, work in works.items()}
        runs = {name: partial(_by_events, replay, cache) for name, replay in replays.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):  # the first turn loads code
        for name, run in runs.items():
            times[name].append(run())
    return {name: Times(values[1:], by[name]) for name, values in times.items()}


def _captured(work: Work, device: torch.device) -> Work:
    # torch asks for the warm-up to be on another stream than the default one, which captures nothing
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _by_events(work: Work, cache: torch.Tensor) -> float:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cache.zero_()
    begun.record()
    work()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1e3


def _by_clock(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
