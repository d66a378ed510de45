"""`fastmoco-shard index`: indexes, records and manifest beside tars made by others, which stay as they are.

First every tar is read, in any number of processes, and what was found kept in a work folder, so that an
interrupted indexing goes on where it stopped. When all are read, labels are numbered and the files get their names.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shards._software import made_by
from shards.errors import PackError, ShardSetError
from shards.foreign.one_tar import WORK, Tar, finish, found_in, kept, read_tar, write_classes
from shards.format.layout import SCHEMA
from shards.format.manifest import IN_IDX, MANIFEST, Manifest, Quarantined, parse_manifest
from shards.pool import cores, process_map
from shards.storage.files import whole_file, write_whole
from shards.words import counted, display

QUARANTINE = "quarantine.jsonl"


def index_tars(
    folder: Path, *, workers: int = 0, check: bool = True, overwrite: bool = False, say: Callable[[str], None] = print
) -> Manifest:
    """Make a shard set of the tars in a folder; goes on where an earlier call stopped.

    Args:
        folder: Local folder with tars.
        workers: Processes; 0 takes one per core. The files do not depend on it.
        check: Decode the data of all images, so that damaged ones are left out.
        overwrite: Replace the indexes and the manifest that are there.
        say: Told how far it is.

    Returns:
        The manifest.

    Raises:
        PackError: There are no tars, files of something else are in the way, or no image can be used.
    """
    try:
        tars = _tars(folder)
        source = _source(tars)
        options = {"check": check}
        plan = hashlib.sha256(json.dumps([SCHEMA, IN_IDX, options, source], sort_keys=True).encode()).hexdigest()
        before = _before(folder, options, source, overwrite)
        if before is not None:
            say(f"{display(str(folder))} is indexed already: {counted(before.samples, 'image')}")
            return before
        tasks = [Tar(folder, tar.stem, check, plan) for tar in tars]
        with _held(folder, tasks, overwrite):
            return _index(folder, tasks, options, source, workers or cores(), say)
    except OSError as error:
        where = display(error.filename or str(folder))
        raise PackError(f"{where}: {error.strerror or error}; run the same command again: it goes on") from error


def _tars(folder: Path) -> list[Path]:
    tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file())
    name = display(str(folder))
    if not tars:
        below = next((path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.tar"))), None)
        hint = f"; there are some in {display(str(below))}: index that" if below else ""
        raise PackError(f"no tars (*.tar) in {name}{hint}")
    for tar in tars:
        if not tar.stem.isprintable() or not tar.stem:
            raise PackError(f"the name of {display(tar.name)} in {name} is no printable UTF-8; rename it")
    return tars


def _source(tars: list[Path]) -> dict[str, Any]:
    state, total = hashlib.sha256(), 0
    for tar in tars:
        size = tar.stat().st_size
        state.update(b"%s\0%d\0" % (os.fsencode(tar.name), size))
        total += size
    return {"tars": len(tars), "bytes": total, "hash": state.hexdigest()}


def _before(folder: Path, options: dict[str, Any], source: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest of an indexing that is whole; None where there is none, or where it is to be replaced."""
    path, name = folder / MANIFEST, display(str(folder))
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except ShardSetError:
        raise PackError(f"{display(str(path))} is damaged or of something else; remove it to index {name}") from None
    if manifest.keys != IN_IDX:
        raise PackError(f"{name} is a set that was packed with its indexes: nothing to index (see fastmoco-shard info)")
    if overwrite:
        return None
    if manifest.options != options:
        how = f"with --check {manifest.options.get('check')}"
    elif manifest.source != source:
        was, now = (f"{s['tars']:,} tars of {s['bytes']:,} bytes" for s in (manifest.source, source))
        how = f"when it held {was} (now {now})" if was != now else "when its tars had other names"
    else:
        return manifest
    raise PackError(f"{name} was indexed {how}; use --overwrite to index it again (the tars stay as they are)")


@contextlib.contextmanager
def _held(folder: Path, tasks: list[Tar], overwrite: bool) -> Iterator[None]:
    """The work folder, held against other indexers; it stays for the next call where this one does not end well."""
    work = folder / WORK
    if not work.exists() and not overwrite:
        _refuse_others(folder, tasks)
    work.mkdir(exist_ok=True)
    with open(work / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PackError(f"{display(str(folder))} is being indexed by another process; wait for it") from None
        yield
        shutil.rmtree(work)


def _refuse_others(folder: Path, tasks: list[Tar]) -> None:
    """PackError where files that would be replaced are there and are not of an earlier indexing."""
    names = [task.name + suffix for task in tasks for suffix in (".npy", ".idx", ".json")] + [QUARANTINE]
    there = set(os.listdir(folder))
    found = [name for name in names if name in there]
    if found:
        more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
        raise PackError(
            f"{display(str(folder))} holds {', '.join(map(display, found[:3]))}{more}, which would be replaced;"
            " move them away, or use --overwrite"
        )


def _index(
    folder: Path,
    tasks: list[Tar],
    options: dict[str, Any],
    source: dict[str, Any],
    workers: int,
    say: Callable[[str], None],
) -> Manifest:
    (folder / MANIFEST).unlink(missing_ok=True)
    workers = min(workers, len(tasks))
    missing = [task for task in tasks if kept(task) is None]
    if len(missing) < len(tasks):
        say(f"going on: {len(tasks) - len(missing):,} of {len(tasks):,} tars are read already")
    for number, text in enumerate(process_map(read_tar, missing, workers), start=1):
        say(f"{number:,} of {len(missing):,}: {text}")
    classes = write_classes(folder, tasks)
    records = list(process_map(finish, tasks, workers))
    manifest = Manifest(
        samples=sum(record.samples for record in records),
        bytes=sum(record.bytes for record in records if record.samples),
        classes=classes,
        quarantined=_write_quarantine(folder, tasks),
        options=options,
        source=source,
        plan=tasks[0].plan,
        made_by=made_by(),
        records=tuple(records),
        keys=IN_IDX,
    )
    if not manifest.samples:
        where = display(str(folder / QUARANTINE))
        raise PackError(f"none of {counted(len(tasks), 'tar')} holds an image that can be used; {where} says why")
    write_whole(folder / MANIFEST, manifest.to_bytes())
    return manifest


def _write_quarantine(folder: Path, tasks: list[Tar]) -> int:
    """Write quarantine.jsonl; its number of lines."""
    path, count = folder / QUARANTINE, 0
    with whole_file(path) as file:
        for task in tasks:
            for entry in found_in(task)["left_out"]:
                file.write(Quarantined(**entry).line().encode())
                count += 1
    return count
