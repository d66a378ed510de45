"""--profile: a trace of some steady steps, and a table of where a step's time goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmoco.spans import PREFIX, SPANS

log = logging.getLogger(__name__)

WARM_UP = 8
"""Steps of this process before the first that is profiled: they compile, fill caches and lay out buckets."""
FILE = "profile.json.gz"
_COPY = "Memcpy HtoD"
_EXCHANGES = ("gloo:", "ncclDevKernel", "ncclKernel")
_HOST = torch.autograd.DeviceType.CPU
_BACKWARD = "autograd::engine::evaluate_function"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A part of a step; `seconds` are the mean over the profiled steps."""

    name: str
    seconds: float


class Profile:
    """Profiles some steps of a training, on rank 0.

    Args:
        steps: number of steps; 0 for none.
        folder: the run folder, for the trace.
        device: of this rank.
    """

    def __init__(self, steps: int, folder: Path, device: torch.device) -> None:
        self._steps, self._path, self._on_gpu = steps, folder / FILE, device.type == "cuda"
        self._done = 0
        self._profiler: torch.profiler.profile | None = None
        self._began = 0.0

    def after_step(self) -> bool:
        """Called between two steps; returns whether the profile is complete now, which took seconds to write."""
        if not self._steps:
            return False
        self._done += 1
        if self._done == WARM_UP:
            self._start()
        if self._done != WARM_UP + self._steps:
            return False
        self._stop()
        return True

    def __enter__(self) -> Profile:
        """Nothing is profiled before WARM_UP steps are done."""
        return self

    def __exit__(self, *_: object) -> None:
        """A training that was too short says so."""
        if self._profiler is not None:
            self._profiler.stop()
        needed = WARM_UP + self._steps
        if self._steps and self._done < needed:
            log.warning("--profile: the run ended after %d of the %d steps that it needs", self._done, needed)

    def _start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()
        self._began = time.perf_counter()

    def _stop(self) -> None:
        assert self._profiler is not None
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - self._began) / self._steps
        self._profiler.stop()
        events = self._profiler.events() or []
        found = parts(events, self._steps, seconds, self._on_gpu)
        log.info("%s", "\n".join(in_words(found, self._steps, seconds, beside(events, self._steps, self._on_gpu))))
        try:
            self._path.unlink(missing_ok=True)
            self._profiler.export_chrome_trace(str(self._path))
        except (OSError, RuntimeError) as error:  # a full disk: the table is there already
            log.warning("%s cannot be written: %s", self._path, error)
        else:
            log.info("wrote %s, for https://ui.perfetto.dev or chrome://tracing", self._path)
        self._profiler = None


def parts(events: Iterable[Any], steps: int, seconds: float, on_gpu: bool) -> list[Part]:
    """What the mean step consists of; the parts add up to it.

    Args:
        events: of torch.profiler, each with its times in µs.
        steps: number of steps that they are of.
        seconds: length of a step.
        on_gpu: whether to count the time of the GPU's kernels, by the part that launched them, or that of the host.
    """
    every = list(events)
    taken = _of_gpu(every) if on_gpu else _of_host(every)
    order = [*SPANS[: SPANS.index("backward") + 1], "all-reduce", *SPANS[SPANS.index("backward") + 1 :]]
    found = [Part(name, taken.get(name, 0.0) / steps) for name in order]
    rest = "other, and waits of the GPU" if on_gpu else "other"
    return [*found, Part(rest, seconds - sum(part.seconds for part in found))]


def _of_host(events: Sequence[Any]) -> dict[str, float]:
    spans = _spans(events)
    taken = {name: _length(within) / 1e6 for name, within in spans.items()}
    # the passes are over by then: what is left of the exchange was not hidden behind them
    exposed = _length(_without(_common(_exchanges(events), spans.get("backward", [])), _passes(events))) / 1e6
    return {**taken, "all-reduce": exposed, "backward": taken.get("backward", 0.0) - exposed}


def _of_gpu(events: Sequence[Any]) -> dict[str, float]:
    """Kernels by the part that launched them; of exchanges, the time in which no kernel computes."""
    computing = [(event.time_range.start, kernel) for event in events for kernel in event.kernels]
    computing = [(launched, kernel) for launched, kernel in computing if _computes(kernel.name)]
    taken = {
        name: sum(k.duration for launched, k in computing if any(start <= launched < end for start, end in within))
        / 1e6
        for name, within in _spans(events).items()
    }
    on_device = [event for event in events if event.device_type != _HOST and not _is_name(event)]
    busy = _joined([_interval(event) for event in on_device if _computes(event.name)])
    exchanges = [event for event in on_device if event.name.startswith(_EXCHANGES)]
    reducing = [_interval(event) for event in exchanges if "AllReduce" in event.name]
    others = [_interval(event) for event in exchanges if "AllReduce" not in event.name]
    taken["all-reduce"] = _length(_without(reducing, busy)) / 1e6
    taken["shuffle"] = taken.get("shuffle", 0.0) + _length(_without(others, busy)) / 1e6
    return taken


def _computes(kernel: str) -> bool:
    return not kernel.startswith(_EXCHANGES) and _COPY not in kernel


def _is_name(event: Any) -> bool:
    """Whether an event of the device is no kernel, but the time of those within a named block."""
    return event.name.startswith(PREFIX) or getattr(event, "is_user_annotation", False)


def beside(events: Iterable[Any], steps: int, on_gpu: bool) -> list[Part]:
    """What runs at the same time as the parts: exchanges between ranks, and on a GPU copies to it."""
    every = list(events)
    if not on_gpu:
        return [Part("exchanges between ranks", _length(_exchanges(every)) / 1e6 / steps)]
    kernels = [kernel for event in every for kernel in event.kernels]
    exchanged = sum(kernel.duration for kernel in kernels if kernel.name.startswith(_EXCHANGES))
    copied = sum(kernel.duration for kernel in kernels if _COPY in kernel.name)
    return [
        Part("exchanges between ranks", exchanged / 1e6 / steps),
        Part("copy of images to the GPU", copied / 1e6 / steps),
    ]


def in_words(found: Sequence[Part], steps: int, seconds: float, also: Sequence[Part]) -> list[str]:
    """The table as lines."""
    width = max(len(part.name) for part in (*found, *also))

    def row(part: Part) -> str:
        return f"  {part.name:<{width}}  {1000 * part.seconds:9.2f} ms  {100 * part.seconds / seconds:5.1f} %"

    lines = [f"where a step goes (mean of {steps} on rank 0, with the profiler's own time):", *map(row, found)]
    lines.append(f"  {'step':<{width}}  {1000 * seconds:9.2f} ms  100.0 %")
    shown = [part for part in also if part.seconds]
    return lines + (["at the same time:", *map(row, shown)] if shown else [])


def _spans(events: Sequence[Any]) -> dict[str, list[Interval]]:
    """The intervals of each span on the host."""
    found: dict[str, list[Interval]] = {}
    for event in events:
        if event.name.startswith(PREFIX) and event.device_type == _HOST:
            found.setdefault(event.name.removeprefix(PREFIX), []).append(_interval(event))
    return found


def _exchanges(events: Sequence[Any]) -> list[Interval]:
    return _joined([_interval(event) for event in events if event.name.startswith(_EXCHANGES)])


def _passes(events: Sequence[Any]) -> list[Interval]:
    return _joined([_interval(event) for event in events if event.name.startswith(_BACKWARD)])


def _interval(event: Any) -> Interval:
    return event.time_range.start, event.time_range.end


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in _joined(intervals))


def _joined(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as intervals that do not overlap, in order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _common(some: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    return _joined(
        (max(start, begin), min(end, stop))
        for start, end in some
        for begin, stop in others
        if max(start, begin) < min(end, stop)
    )


def _without(some: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    left = _joined(some)
    for begin, stop in others:
        left = [
            (start, end)
            for first, last in left
            for start, end in ((first, min(last, begin)), (max(first, stop), last))
            if start < end
        ]
    return left
