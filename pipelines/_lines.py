"""Files of JSON lines to which the ranks of a run append: no line is torn, and none is lost to another rank's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.storage.files import append_whole, write_whole


class Lines:
    """A file of JSON lines that several processes append to.

    Args:
        path: the file; created, with its folder, by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records.

        Raises:
            OSError: they cannot be written; then none of them is.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks; one short write is whole there, too
                fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":  # a line that a crash cut off
                data = b"\n" + data
            append_whole(file, data)
        finally:
            os.close(file)

    def new(self) -> Iterator[dict[str, Any]]:
        """The whole lines since the last call, by all processes; what is no JSON object is passed over."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                lines, rest = file.read().rpartition(b"\n")[::2]
                self._read_to = file.tell() - len(rest)
        except FileNotFoundError:
            return
        yield from (record for line in lines.split(b"\n") if (record := _record(line)) is not None)


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines of a file that are not wanted, and those that are no JSON object.

    Raises:
        OSError: the file cannot be read or written; it is unchanged then.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    kept = [line for line in data.split(b"\n") if (record := _record(line)) is not None and wanted(record)]
    after = b"".join(line + b"\n" for line in kept)
    if after != data:
        write_whole(path, after)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
