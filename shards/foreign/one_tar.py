"""Indexing one tar: read it, keep what was found in the work folder, and write its final files."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import PackError
from shards.foreign.tar_index import index_tar
from shards.format.index import ROW, npy_bytes
from shards.format.labels import labels_in, number_labels
from shards.format.layout import MAX_SHARD_SIZE
from shards.format.manifest import Quarantined, ShardRecord, parse_json
from shards.format.writer import record_bytes
from shards.storage.files import sha256, write_whole
from shards.words import counted, display

WORK = "indexing.partial"  # folder beside the tars while an indexing is unfinished
_KEPT = {
    "stamp": list,
    "names": list,
    "sha256": str,
    "left_out": list,
    "channels": int,
}  # fields of what is kept of a tar
_CLASSES = "classes"  # file in the work folder; those of the tars have suffixes


@dataclass(frozen=True)
class Tar:
    """One tar: its stem, the options, and the identity of the set."""

    folder: Path
    name: str
    check: bool
    plan: str

    @property
    def tar(self) -> Path:
        """The tar itself."""
        return self.folder / f"{self.name}.tar"

    @property
    def kept(self) -> Path:
        """What was found; path without suffix."""
        return self.folder / WORK / self.name


def read_tar(task: Tar) -> str:
    """Read one tar and keep what was found; returns a line about it."""
    # Before the reading: if the tar changes meanwhile, its stamp is not this one, and `kept` refuses the findings.
    stamp = _stamp(task)
    with open(task.tar, "rb") as file:
        found = index_tar(file, task.tar.name, task.check)
    if len(found.rows) > MAX_SHARD_SIZE:
        raise PackError(f"{display(str(task.tar))} holds {len(found.rows):,} images, over {MAX_SHARD_SIZE:,}")
    with open(task.tar, "rb", buffering=0) as file:
        digest = sha256(file)
    # The `.json` last: it commits the findings, as `kept` looks at no other file.
    for suffix, data in ((".npy", npy_bytes(found.rows)), (".idx", found.idx)):
        write_whole(task.kept.with_name(task.name + suffix), data)
    values = {"stamp": stamp, "names": found.names, "sha256": digest, "channels": found.channels}
    values["left_out"] = [asdict(entry) for entry in found.left_out]
    write_whole(task.kept.with_name(task.name + ".json"), json.dumps(values).encode())
    left_out = f", {len(found.left_out):,} left out" if found.left_out else ""
    notes = "".join(f"; {note}" for note in found.notes)
    return f"{display(task.tar.name)}: {counted(len(found.rows), 'image')}{left_out}{notes}"


def _stamp(task: Tar) -> list[Any]:
    """What has to be unchanged for a tar not to be read again."""
    status = task.tar.stat()
    return [task.check, status.st_size, status.st_mtime_ns]


def kept(task: Tar) -> dict[str, Any] | None:
    """What an earlier run found in a tar; None if it has to be read again."""
    try:
        values = parse_json(task.kept.with_name(task.name + ".json").read_bytes())
        whole = all(isinstance(values[name], kind) for name, kind in _KEPT.items())
        return values if whole and values["stamp"] == _stamp(task) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_classes(folder: Path, tasks: list[Tar]) -> tuple[str, ...]:
    """Class names by label."""
    names: set[str] = set()
    for task in tasks:
        names.update(found_in(task)["names"])
    classes = tuple(name.decode() for name in number_labels([name.encode() for name in names])[0])
    # In a file that each process reads once: as a part of the tasks, up to a million names would be sent with each tar.
    write_whole(folder / WORK / _CLASSES, json.dumps(classes).encode())
    return classes


@lru_cache(maxsize=1)
def _read_classes(path: Path, mtime: int) -> tuple[str, ...]:
    """The class names; `mtime` distinguishes successive files with that path."""
    return tuple(json.loads(path.read_bytes()))


def finish(task: Tar) -> ShardRecord:
    """Number a tar's labels and write its final files, the record last."""
    found = found_in(task)
    path = task.folder / WORK / _CLASSES
    rows = _kept_rows(task)
    rows["label"] = labels_in(_read_classes(path, path.stat().st_mtime_ns), found["names"])[rows["label"]]
    index, samples = npy_bytes(rows), len(rows)
    left_out = [Quarantined(**entry) for entry in found["left_out"]]
    record = ShardRecord(
        name=task.name,
        samples=samples,
        bytes=task.tar.stat().st_size if samples else 0,
        sha256=found["sha256"] if samples else "",
        index_sha256=hashlib.sha256(index).hexdigest() if samples else "",
        quarantined=len(left_out),
        plan=task.plan,
        channels=found["channels"] if samples else 3,
    )
    files = {".npy": index, ".idx": task.kept.with_name(task.name + ".idx").read_bytes()}
    for suffix, data in files.items():
        path = task.folder / (task.name + suffix)
        if samples:
            write_whole(path, data)
        else:
            path.unlink(missing_ok=True)  # of an earlier indexing, when the tar still had images
    write_whole(task.folder / f"{task.name}.json", record_bytes(record, left_out))
    return record


def _kept_rows(task: Tar) -> np.ndarray:
    path = task.kept.with_name(task.name + ".npy")
    try:
        rows = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except Exception:  # NumPy's header parser raises various types
        rows = None
    if rows is None or rows.dtype != ROW or rows.ndim != 1:
        remedy = f"remove {display(str(path.parent))} and run the same command with --overwrite"
        raise PackError(f"{display(str(path))} is damaged: it is not an array of index rows; {remedy}")
    return rows


def found_in(task: Tar) -> dict[str, Any]:
    """What was found in a tar, once all tars have been read."""
    found = kept(task)
    if found is None:
        raise PackError(f"{display(str(task.tar))} changed while it was indexed; run the same command again")
    return found
