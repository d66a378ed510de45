"""Files of records that grow while a run lasts: never torn, and cut back to the step that the run continues from."""

from __future__ import annotations

import json
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.storage.files import append_whole, write_whole

log = logging.getLogger(__name__)

_LONGEST = 1 << 20  # bytes of a line; a run's have some hundred


class Appended:
    """A file to which whole records are appended.

    What cannot be written is kept in memory and written with the next record; half a record is taken back.

    Args:
        path: the file; created by the first `flush`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._waiting = bytearray()
        self.unwritten = 0
        """Number of records that are not written."""

    def add(self, record: bytes) -> None:
        """Add a record, which the next `flush` writes."""
        self._waiting += record
        self.unwritten += 1

    def flush(self) -> None:
        """Write what is added.

        Raises:
            OSError: some of it cannot be written; the error names the file, which ends with a whole record.
        """
        if not self._waiting:
            return
        try:
            if self._file is None or os.fstat(self._file).st_nlink == 0:  # deleted meanwhile
                self.close()
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            append_whole(self._file, bytes(self._waiting))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._waiting.clear()
        self.unwritten = 0

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # of a network's file system, which reports an earlier write's failure
                os.close(self._file)
            self._file = None


def rewind(path: Path, step: int) -> dict[str, float | None]:
    """Cut a file of JSON lines back to a step: lines of later steps are dropped.

    A last line that is not whole, as after a crash, is dropped. A file that is damaged otherwise is moved aside with
    one warning; its sound lines are kept.

    Args:
        path: the file; nothing is done where it is missing.
        step: lines with a greater `step` are dropped.

    Returns:
        The newest figures of the lines that are kept, by name.

    Raises:
        OSError: the file cannot be read or written.
    """
    newest: dict[str, float | None] = {}
    if not os.path.lexists(path):
        return newest
    if not stat.S_ISREG(os.lstat(path).st_mode):
        _set_aside(path, "it is no file")
        return newest
    kept, damaged = list[bytes](), list[int]()
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), 1):
            whole = line.endswith(b"\n")
            record = _record(line) if whole else None
            if record is not None:
                if record["step"] <= step:
                    kept.append(line)
                    newest |= _figures(record)
            elif whole or not line.startswith(b"{") or len(line) == _LONGEST:
                damaged.append(number)
            else:
                log.warning("dropped line %d of %s: it is incomplete, as after a crash", number, path)
        size = sum(map(len, kept))
        file.seek(0)
        begins_so = all(file.readline() == line for line in kept)
    if damaged:
        _set_aside(path, f"line {damaged[0]} is no record of a step")
    elif begins_so:  # the usual case, for which a full disk has room
        os.truncate(path, size)
        return newest
    write_whole(path, b"".join(kept))
    return newest


def _figures(record: dict[str, Any]) -> dict[str, float | None]:
    """The figures of a record; the notes of a run have none."""
    return {
        name: value
        for name, value in record.items()
        if name not in ("step", "epoch") and (value is None or type(value) is float or _is_count(value))
    }


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) < 1 << 63  # a damaged file may have any


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(record, dict) and type(record.get("step")) is int
    return record if is_one else None


def _set_aside(path: Path, reason: str) -> None:
    numbers = (path.with_name(f"{path.name}.damaged-{number}") for number in range(1, 10_000))
    aside = next(name for name in numbers if not os.path.lexists(name))
    os.rename(path, aside)
    log.warning("%s is damaged: %s; it is kept as %s, and a new one begun", path, reason, aside.name)
