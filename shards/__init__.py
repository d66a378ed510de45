"""Packed image collections: WebDataset tar shards, written once and read by sample id. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shards.errors import PackError, SampleError, ShardSetError, StreamError
from shards.format.manifest import Manifest, ShardRecord
from shards.packing.options import PackOptions
from shards.reader import ShardSet

if TYPE_CHECKING:
    from shards.packing.pack import pack

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
    """Import `pack` when it is first used: readers need neither Pillow nor rich."""
    if name == "pack":
        from shards.packing.pack import pack

        return pack
    raise AttributeError(f"module 'shards' has no attribute {name!r}")
