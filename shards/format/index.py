"""The two indexes of a shard: binary rows (`.npy`) for ShardSet, text lines (`.idx`) for DALI's reader."""

from __future__ import annotations

import io
import re
import threading
import urllib.parse
from collections.abc import Iterable, Sequence

import numpy as np

from shards.format.layout import BLOCK, MAX_CLASSES, padded, sample_key

_PARSING = threading.Lock()
_UNSAFE = re.compile(rb"[\x00-\x20%\x7f]")

# One row per sample. `offset` is that of the JPEG's first byte in the tar, `crc32` is zlib's, of the JPEG.
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


def npy_bytes(rows: np.ndarray) -> bytes:
    """`.npy` file (format version 1.0) of ROW[N]."""
    buffer = io.BytesIO()
    # A fixed version, not the lowest that fits: the bytes must not depend on NumPy's choice.
    np.lib.format.write_array(buffer, rows, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def npy_header(count: int) -> bytes:
    """The first bytes of `npy_bytes` of `count` rows."""
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def rows_of_index(data: bytes, name: str, samples: int, tar_bytes: int, classes: int = MAX_CLASSES) -> np.ndarray:
    """ROW[samples] from the content of a `.npy` file.

    Args:
        data: The file's content.
        name: The file's name, for errors.
        samples: Expected number of rows.
        tar_bytes: Size of the tar that the rows point into.
        classes: Number of classes, which labels must be below.

    Raises:
        ValueError: The file is not the index of such a tar.
    """
    header = npy_header(samples)
    try:
        # NumPy parses the header with `ast`, which fails at random if several threads do so at once (CPython 3.11).
        # A header that fastmoco wrote is compared instead, which is also faster; others are parsed under a lock.
        if data.startswith(header) and len(data) == len(header) + samples * ROW.itemsize:
            rows = np.frombuffer(data, ROW, offset=len(header))
        else:
            with _PARSING:
                rows = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:  # NumPy's header parser raises various types; its advice (unpickle the file) would mislead
        raise ValueError(f"{name} is damaged: it is not a complete array in NumPy's format") from None
    if rows.dtype != ROW or rows.shape != (samples,):
        raise ValueError(f"{name} is damaged: {rows.dtype} {rows.shape} instead of {samples} rows")
    # Offsets first: the sum of a damaged offset and a size may wrap around.
    if samples and (rows["offset"].max() > tar_bytes or (rows["offset"] + rows["size"]).max() > tar_bytes):
        raise ValueError(f"{name} is damaged: it points beyond the tar's {tar_bytes} bytes")
    if samples and not (rows["width"].all() and rows["height"].all()):
        raise ValueError(f"{name} is damaged: it holds images of 0 pixels")
    if samples and (rows["label"].min() < -1 or rows["label"].max() >= classes):
        raise ValueError(f"{name} is damaged: it holds labels beyond the {classes:,} classes of the set")
    return rows


def idx_bytes(shard: int, rows: np.ndarray, extension: str = "jpg") -> bytes:
    """`idx_text` of a packed shard: KEY.jpg or KEY.png, and KEY.cls after it if there is a label."""
    image = extension.encode()
    samples = []
    for row, (offset, size, label) in enumerate(rows[["offset", "size", "label"]].tolist()):
        key = sample_key(shard, row).encode()
        parts = [(image, offset, size, key + b"." + image)]
        if label >= 0:
            parts.append((b"cls", offset + padded(size) + BLOCK, len(str(label)), key + b".cls"))
        samples.append(parts)
    return idx_text(samples)


def idx_text(samples: Sequence[Iterable[tuple[bytes, int, int, bytes]]]) -> bytes:
    """DALI's index of a tar, version 1.2: extension, data offset, size and file name of each component.

    A sample's image comes first. White space would end a name, so white space, control characters and `%` are
    percent-encoded, as in URLs (`%20`).
    """
    lines = [b"v1.2 %d" % len(samples)]
    for parts in samples:
        lines.append(b" ".join(b"%s %d %d %s" % (ext, start, size, _quoted(name)) for ext, start, size, name in parts))
    return b"\n".join(lines) + b"\n"


def idx_keys(data: bytes) -> list[bytes]:
    """Keys of the samples in an index of version 1.2: their images' names without extension.

    Raises:
        ValueError: `data` is not such an index.
    """
    head, *lines = data.split(b"\n")
    version, _, count = head.partition(b" ")
    if version != b"v1.2" or not count.isdigit() or lines[int(count) :] != [b""]:
        raise ValueError("it is not a complete index of version v1.2")
    keys = []
    for number, line in enumerate(lines[:-1], start=2):
        fields = line.split(b" ", 4)
        if len(fields) < 4:
            raise ValueError(f"line {number} names no file")
        keys.append(urllib.parse.unquote_to_bytes(fields[3])[: -len(fields[0]) - 1])
    return keys


def _quoted(name: bytes) -> bytes:
    return _UNSAFE.sub(lambda found: b"%%%02X" % found.group()[0], name)
