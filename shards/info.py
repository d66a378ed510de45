"""What a packed set holds, in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np

from shards.files import counted, display, human_bytes
from shards.reader import ShardSet

_SHOWN_CLASSES = 8


def describe(shard_set: ShardSet) -> Iterator[str]:
    """Lines about a set: totals, classes, sizes, options, images left out."""
    manifest = shard_set.manifest
    ids = np.arange(len(shard_set))
    sizes = shard_set.sizes(ids)
    yield f"set        {display(str(shard_set.path))}"
    shards = counted(len(manifest.records), "shard")
    yield f"images     {len(shard_set):,} in {shards}, {human_bytes(manifest.bytes)}"
    yield f"mean       {human_bytes(manifest.bytes / max(1, len(shard_set)))} an image"
    for name, values in (("width", sizes[:, 1]), ("height", sizes[:, 0]), ("short side", sizes.min(axis=1))):
        low, quarter, half, three, high = np.percentile(values, (0, 25, 50, 75, 100)).astype(int)
        yield f"{name:<10} {low} to {high} pixels, quartiles {quarter}, {half}, {three}"
    yield from _classes(shard_set.classes, shard_set.labels(ids))
    yield "options    " + ", ".join(f"{name} {value}" for name, value in manifest.options.items())
    source = manifest.source
    yield f"source     {source['images']:,} files, {human_bytes(source['bytes'])}, hash {source['hash'][:16]}"
    yield f"made by    {', '.join(f'{name} {version}' for name, version in manifest.made_by.items())}"
    yield f"digest     {shard_set.digest}"
    yield f"left out   {manifest.quarantined:,}{_causes(shard_set) if manifest.quarantined else ''}"


def _classes(names: tuple[str, ...], labels: np.ndarray) -> Iterator[str]:
    if not names:
        yield "classes    none: no labels"
        return
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    yield f"classes    {len(names):,}, of {counts.min():,} to {counts.max():,} images"
    for label in range(min(len(names), _SHOWN_CLASSES)):
        yield f"  {label:>8} {names[label]}: {counts[label]:,}"
    if len(names) > _SHOWN_CLASSES:
        yield f"       ... and {len(names) - _SHOWN_CLASSES:,} more"


def _causes(shard_set: ShardSet) -> str:
    """Causes with their numbers, from quarantine.jsonl where it is still there."""
    path = shard_set.path / "quarantine.jsonl"
    try:
        with open(path, encoding="utf-8") as file:
            causes = Counter(json.loads(line)["reason"].split(":")[0] for line in file)
    except (OSError, ValueError, KeyError):
        return ""
    return " (" + ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common()) + ")"
