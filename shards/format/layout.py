"""Names, limits and block sizes of the format. Imports no NumPy, so that flags are checked without it."""

from __future__ import annotations

import re

SCHEMA = "fastmoco-shards/1"
SCHEMA_16 = "fastmoco-shards/2"  # of sets with images of 16 bits, which readers of the first do not expect
MAX_SHARDS = 10**6  # keys have six digits for the shard
MAX_SHARD_SIZE = 10**6  # and six for the row
MAX_CLASSES = 10**6  # labels go up to one less
SHARD_FILE = re.compile(r"shard-\d{6}\.(tar|idx|npy|names|levels|json)")
BLOCK = 512  # bytes of a tar block and of a tar header


def shard_name(shard: int) -> str:
    """Stem of a shard's files."""
    return f"shard-{shard:06d}"


def sample_key(shard: int, row: int) -> str:
    """Key of a sample: six digits for the shard, six for the row, so that a key alone locates its sample."""
    return f"{shard:06d}{row:06d}"


def padded(size: int) -> int:
    """Bytes that the data of a member of `size` bytes occupy in a tar."""
    return -(-size // BLOCK) * BLOCK
