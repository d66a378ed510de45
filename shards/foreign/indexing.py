"""`fastmoco index`: indexes, records and a manifest beside existing tars, which are not changed.

First every tar is read, by any number of processes, and the findings are kept in a work folder, so that an interrupted
indexing can continue. When all are read, labels are numbered and the final files written.
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
from shards.format.hidden import is_hidden
from shards.format.layout import SCHEMA
from shards.format.manifest import IN_IDX, MANIFEST, QUARANTINE, Manifest, Quarantined
from shards.format.parsing import parse_manifest
from shards.pool import cores, process_map
from shards.progress import progress
from shards.storage.files import whole_file, write_whole
from shards.words import counted, display


def index_tars(
    folder: Path, *, workers: int = 0, check: bool = True, overwrite: bool = False, say: Callable[[str], None] = print
) -> Manifest:
    """Turn the tars in a folder into a shard set; continues an interrupted indexing.

    Args:
        folder: Local folder with tars.
        workers: Number of processes; 0: one per core. Does not affect the files.
        check: Decode all images, so that damaged ones are left out.
        overwrite: Replace existing indexes and the manifest.
        say: Called with lines about the progress.

    Returns:
        The manifest.

    Raises:
        PackError: There are no tars, unrelated files are in the way, or no image can be used.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise PackError(f"{display(str(folder))} {what}; give the folder that holds the tars")
    try:
        tars = _tars(folder, say)
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
        raise PackError(f"{where}: {error.strerror or error}; run the same command again to continue") from error


def _tars(folder: Path, say: Callable[[str], None]) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file())
    tars = [path for path in found if not is_hidden(os.fsencode(path.name))]
    name = display(str(folder))
    if len(tars) < len(found):
        hidden = next(display(path.name) for path in found if path not in tars)
        say(f"left out {counted(len(found) - len(tars), 'hidden tar')}, such as {hidden}")
    if not tars:
        below = next((path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.tar"))), None)
        pack = f"; to pack images that it holds: fastmoco pack --src {name} --out FOLDER"
        hint = f"; {display(str(below))} has some: index that" if below else pack
        raise PackError(f"no tars (*.tar) in {name}{hint}")
    for tar in tars:
        if not tar.stem.isprintable() or not tar.stem:
            raise PackError(f"the name of {display(tar.name)} in {name} is not printable UTF-8; rename it")
        if f"{tar.stem}.json" == MANIFEST:
            raise PackError(f"{tar.name} in {name} would have its record in {MANIFEST}, which is the set's; rename it")
    return tars


def _source(tars: list[Path]) -> dict[str, Any]:
    # Names and sizes only: hashing the content would read every tar before the first one is indexed.
    state, total = hashlib.sha256(), 0
    for tar in tars:
        size = tar.stat().st_size
        state.update(b"%s\0%d\0" % (os.fsencode(tar.name), size))
        total += size
    return {"tars": len(tars), "bytes": total, "hash": state.hexdigest()}


def _before(folder: Path, options: dict[str, Any], source: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest of a complete indexing; None if there is none, or it is to be replaced."""
    path, name = folder / MANIFEST, display(str(folder))
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except ShardSetError:
        raise PackError(f"{display(str(path))} is damaged or not a shard set's; remove it to index {name}") from None
    if manifest.keys != IN_IDX:
        raise PackError(f"{name} was packed by fastmoco pack and has indexes (see fastmoco info {name})")
    if overwrite:
        return None
    if manifest.options != options:
        how = f"with --check {manifest.options.get('check')}"
    elif manifest.source != source:
        was, now = (f"{s['tars']:,} tars of {s['bytes']:,} bytes" for s in (manifest.source, source))
        how = f"when it held {was} (now {now})" if was != now else "when its tars had other names"
    else:
        return manifest
    raise PackError(f"{name} was indexed {how}; use --overwrite to index it again (the tars are not changed)")


@contextlib.contextmanager
def _held(folder: Path, tasks: list[Tar], overwrite: bool) -> Iterator[None]:
    """Lock the work folder against other indexers. It is removed at the end, but kept after a failure."""
    work = folder / WORK
    # With a work folder, indexes beside the tars are those of an interrupted run: they may be replaced.
    if not work.exists() and not overwrite:
        _refuse_others(folder, tasks)
    work.mkdir(exist_ok=True)
    with open(work / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PackError(f"{display(str(folder))} is being indexed by another process; wait for it") from None
        yield
        # Not in a `finally`: after a failure the next run continues from what is kept here.
        shutil.rmtree(work)


def _refuse_others(folder: Path, tasks: list[Tar]) -> None:
    """Raise PackError if files exist that would be replaced and are not from an earlier indexing."""
    names = [task.name + suffix for task in tasks for suffix in (".npy", ".idx", ".json")] + [QUARANTINE]
    existing = set(os.listdir(folder))
    found = [name for name in names if name in existing]
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
    # First, so that nobody opens a set whose indexes are being replaced.
    (folder / MANIFEST).unlink(missing_ok=True)
    workers = min(workers, len(tasks))
    missing = [task for task in tasks if kept(task) is None]
    if len(missing) < len(tasks):
        say(f"continuing: {len(tasks) - len(missing):,} of {len(tasks):,} tars have been read already")
    # Without a terminal each tar has its line, and the bar none.
    with progress("read tars", len(missing), "{:,} of {:,} tars", say=None) as bar:
        for number, text in enumerate(process_map(read_tar, missing, workers), start=1):
            say(f"{number:,} of {len(missing):,}: {text}")
            bar.advance()
    # Whether labels are numbers or names is known after the last tar. Then the indexes, not the tars, are read again.
    classes = write_classes(folder, tasks)
    with progress("write indexes", len(tasks), "{:,} of {:,} tars") as bar:
        records = []
        for record in process_map(finish, tasks, workers):
            records.append(record)
            bar.advance()
    manifest = Manifest(
        samples=sum(record.samples for record in records),
        bytes=sum(record.bytes for record in records),
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
        raise PackError(f"none of {counted(len(tasks), 'tar')} holds a usable image; {where} gives the reasons")
    write_whole(folder / MANIFEST, manifest.to_bytes())
    return manifest


def _write_quarantine(folder: Path, tasks: list[Tar]) -> int:
    """Write quarantine.jsonl; returns its number of lines."""
    path, count = folder / QUARANTINE, 0
    with whole_file(path) as file:
        for task in tasks:
            for entry in found_in(task)["left_out"]:
                file.write(Quarantined(**entry).line().encode())
                count += 1
    return count
