"""The indexes of a shard: binary rows (`.npy`) for ShardSet, text lines (`.idx`) for DALI's reader."""

from __future__ import annotations

import io
import re

import numpy as np

SCHEMA = "fastmoco-shards/1"
MAX_SHARDS = 10**6
MAX_SHARD_SIZE = 10**6
SHARD_FILE = re.compile(r"shard-\d{6}\.(tar|idx|npy|json)")
BLOCK = 512  # bytes of a tar block and of a tar header

# One row a sample. `offset` is the place of the JPEG's first byte in the tar, `crc32` is zlib's of the JPEG.
ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("label", "<i4"),
        ("crc32", "<u4"),
    ]
)


def shard_name(shard: int) -> str:
    """Stem of a shard's files."""
    return f"shard-{shard:06d}"


def sample_key(shard: int, row: int) -> str:
    """Key of a sample: six digits of the shard, six of the row; so a key alone says where its sample lies."""
    return f"{shard:06d}{row:06d}"


def padded(size: int) -> int:
    """Bytes that a member of `size` bytes takes in a tar, its header not counted."""
    return -(-size // BLOCK) * BLOCK


def npy_bytes(rows: np.ndarray) -> bytes:
    """`.npy` file (format version 1.0) of ROW[N]."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def npy_header(count: int) -> bytes:
    """The first bytes of `npy_bytes` of `count` rows."""
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def idx_bytes(shard: int, rows: np.ndarray) -> bytes:
    """DALI's index of a shard, version 1.2: extension, data offset, size and file name of each component."""
    lines = [f"v1.2 {len(rows)}"]
    for row, (offset, size, label) in enumerate(rows[["offset", "size", "label"]].tolist()):
        key = sample_key(shard, row)
        line = f"jpg {offset} {size} {key}.jpg"
        if label >= 0:
            line += f" cls {offset + padded(size) + BLOCK} {len(str(label))} {key}.cls"
        lines.append(line)
    return ("\n".join(lines) + "\n").encode()
