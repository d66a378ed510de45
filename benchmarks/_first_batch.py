"""The start of a pipeline up to its first batch. `startup.py` runs it in a separate process."""

from __future__ import annotations

import sys
import time
from typing import Any

from _memory import memory

# nothing above imports this project or numpy: the time of those imports is measured

PREFETCH = 2


def first_batch(folder: str, order: Any, batch: int, size: int) -> dict[str, Any]:
    """Times of this process, and the number of shards it opened."""
    opened: set[str] = set()
    begun = time.perf_counter()
    import numpy as np

    from pipelines import PipelineOptions, ViewSpec, build
    from shards import ShardSet

    imported = time.perf_counter()
    sys.addaudithook(lambda event, details: opened.add(str(details[0])) if event == "open" else None)
    shards = ShardSet(folder)
    open_at = time.perf_counter()
    options = PipelineOptions(pipeline="torch", order=order, prefetch=PREFETCH)
    with build(shards, ViewSpec.moco_v2(size), options, global_batch=batch) as pipeline:
        batches = iter(pipeline.epoch(0))  # kept: dropping it would wait for the batch in progress
        ids = next(batches).ids.numpy()
        done = time.perf_counter()
        opened = {name for name in opened if name.endswith(".tar")}  # includes those of batches in progress
        if pipeline.quarantined:
            raise RuntimeError(f"{pipeline.quarantined} images could not be read from {folder}")
    needed = len(np.unique(np.searchsorted(shards.ends, ids, side="right")))
    if len(opened) < needed:
        raise RuntimeError(f"the first batch needs {needed} shards, but only {len(opened)} were opened")
    return {
        "records": len(shards.manifest.records),
        "shards_read": needed,
        "shards_opened": len(opened),
        "import_seconds": imported - begun,
        "open_seconds": open_at - imported,
        "first_batch_seconds": done - open_at,
        "together_seconds": done - imported,
        "rss_mb": memory("VmRSS") / 2**20,
    }
