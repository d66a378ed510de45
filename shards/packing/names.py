"""The names of a packed set's images, which the set itself does not hold: from its source."""

from __future__ import annotations

import tempfile
from pathlib import Path

from shards.errors import PackError
from shards.format.manifest import Manifest
from shards.format.writer import read_record
from shards.packing.options import PackOptions
from shards.packing.plan import WORK, read_shard
from shards.packing.planning import make_plan
from shards.packing.sources import open_source
from shards.storage.store import open_store
from shards.words import display


def names_of(options: PackOptions, manifest: Manifest) -> list[str]:
    """Path of each image below its source, by sample id.

    Args:
        options: What the set was packed with.
        manifest: The set's.

    Raises:
        PackError: The source has changed since.
        OSError: The source or the set cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="fastmoco-") as folder:
        making = Path(folder) / WORK
        plan = make_plan(options, open_source(options), making)
        if plan.identity != manifest.plan:
            raise PackError(f"{display(str(options.src))} has changed since it was packed into {options.out}")
        planned, store = open_store(folder), open_store(options.out)
        names: list[str] = []
        for shard in range(plan.shards):
            left_out = {entry.source for entry in read_record(store, shard)[1]}
            names += [entry.source for entry in read_shard(planned, shard) if entry.source not in left_out]
    return names
