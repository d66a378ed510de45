"""Named parts of a training step, which a profiler sees."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import profiler

PREFIX = "fastmoco: "
"""What the names begin with in a trace."""
SPANS = (
    *("wait", "agreement", "query forward", "momentum update", "shuffle", "key forward", "loss", "enqueue"),
    *("backward", "optimiser"),
)
"""The parts, in the order of a step. None lies within another."""
_NOTHING = nullcontext()


def span(name: str) -> AbstractContextManager[object]:
    """Name what the block does, while a profiler runs; without one it does nothing, which takes about a microsecond."""
    # torch's record_function takes fifty times as long even if nobody looks
    return torch.profiler.record_function(PREFIX + name) if profiler._is_profiler_enabled else _NOTHING
