"""Packed image collections: WebDataset tar shards, written once and read by sample id. Imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.errors import PackError, SampleError, ShardSetError, StreamError
    from shards.format.manifest import Manifest, ShardRecord
    from shards.packing.options import PackOptions
    from shards.packing.pack import pack
    from shards.reader import ShardSet

_MODULES = {
    "Manifest": "shards.format.manifest",
    "PackError": "shards.errors",
    "PackOptions": "shards.packing.options",
    "SampleError": "shards.errors",
    "ShardRecord": "shards.format.manifest",
    "ShardSet": "shards.reader",
    "ShardSetError": "shards.errors",
    "StreamError": "shards.errors",
    "pack": "shards.packing.pack",
}
PART_OF = "fastmoco"  # fastmoco looks for this line: other packages have this name, too

__all__ = [
    "Manifest",
    "PackError",
    "PackOptions",
    "SampleError",
    "ShardRecord",
    "ShardSet",
    "ShardSetError",
    "StreamError",
    "pack",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: flags are checked without NumPy, sets are read without Pillow and rich."""
    if name not in _MODULES:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    found = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = found
    return found
