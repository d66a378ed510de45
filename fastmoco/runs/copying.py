"""A second place for a run's checkpoints and records, from which another machine continues: --checkpoint-copy."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.checkpoints.saving import Keeping
from fastmoco.flags import ConfigError
from fastmoco.runs.warnings import warn
from shards.storage.base import Store
from shards.storage.files import partial, sync, sync_folder, write_whole
from shards.storage.store import open_store
from shards.words import in_words

log = logging.getLogger(__name__)

MARK = "copy.json"
"""In the run folder and in the copy: which run the copy is of."""
CHECKPOINTS = "checkpoints"
_LEFT_OUT = ("status.json", MARK)  # the one is of a machine, the other is written first
_LARGEST_RECORD = 1 << 28  # bytes: what is larger is no record
_COPY = 8 << 20


def upload(store: Store, folder: Path, path: Path, keep: Keeping) -> None:
    """Copy a checkpoint and the records of its run to a store, and delete there what is not kept.

    Args:
        store: the copy.
        folder: the run folder.
        path: the checkpoint. Where it was deleted meanwhile, nothing is done.
        keep: which checkpoints are kept.

    Raises:
        OSError: the store cannot be written.
    """
    name, step = f"{CHECKPOINTS}/{path.name}", checkpoint.step_of(path)
    _forget_unsure(store, folder, step)
    with suppress(FileNotFoundError):
        # what the copy has of a step that was set aside here may be of the steps that were taken back
        copied = store.exists(name) and step not in _set_aside(folder)
        if copied and store.size(name) == path.stat().st_size:
            return
    # before the checkpoint: what is later than the newest checkpoint is cut off, what is missing is lost
    for record in _records(folder):
        store.write(record.name, record.read_bytes())
    aside = store.partial(name)
    try:
        try:
            shutil.copyfile(path, aside)
        except FileNotFoundError:
            return
        store.put({name: aside})
    finally:
        aside.unlink(missing_ok=True)
    steps = _steps(store)
    superfluous = keep.superfluous({step: size for step, (_, size) in steps.items()}, step)
    for step in superfluous:
        store.remove(f"{CHECKPOINTS}/{steps[step][0]}")


def prepare(
    place: str, folder: Path, layout: str, check: Callable[[Path, dict[str, Any]], object], anew: str | None
) -> None:
    """Bring the copy's newest sound checkpoint into the run folder if it is newer than those there.

    Args:
        place: folder or URL of the copy.
        folder: the run folder; it exists.
        layout: format of the run's checkpoints.
        check: raises CheckpointError for a state, read from a path, that is not of this run.
        anew: what a new run was asked for by, `--resume none`; None where an earlier one may be continued.

    Raises:
        ConfigError, CheckpointError: the copy is of another run, cannot be used, or has no sound checkpoint.
    """
    mark, have = folder / MARK, checkpoint.found(folder / CHECKPOINTS)
    try:
        with open_store(place) as store:
            steps, ours, theirs = _looked_at(store, place, folder, anew)
            newest_here = checkpoint.step_of(have[0]) if have else -1
            if steps and ours == theirs is not None:
                _forget_unsure(store, folder, newest_here)
                steps = _steps(store)
            if steps and max(steps) > newest_here:
                _fetch(store, folder, [steps[step][0] for step in sorted(steps, reverse=True) if step > newest_here],
                       layout, check, must=not have)  # fmt: skip
            elif ours is None or ours != theirs:
                write_whole(mark, (json.dumps({"run": ours or secrets.token_hex(8)}) + "\n").encode())
                store.write(MARK, mark.read_bytes())
    except OSError as error:
        if not mark.exists():
            raise ConfigError(f"--checkpoint-copy {place} cannot be used: {in_words(error)}") from error
        # it could before: training goes on from what is here
        warn("checkpoint_copy", f"--checkpoint-copy {place} cannot be read ({in_words(error)}); it is tried again")


def _looked_at(
    store: Store, place: str, folder: Path | None, anew: str | None
) -> tuple[dict[int, tuple[str, int]], str | None, str | None]:
    """A copy's checkpoints, and the marks of the run folder and of the copy; see `prepare`."""
    if folder is not None and Path(place).resolve() == folder.resolve():
        raise ConfigError(f"--checkpoint-copy {place} is the run folder itself; give another place")
    have = folder is not None and bool(checkpoint.found(folder / CHECKPOINTS))
    steps, theirs = _steps(store), _read_mark(lambda: store.read(MARK))
    if steps and anew is not None and not have:
        raise ConfigError(f"{anew}, but --checkpoint-copy {place} holds checkpoints; give an empty place")
    ours = None if folder is None else _read_mark((folder / MARK).read_bytes)
    if steps and have and ours != theirs:
        raise ConfigError(f"--checkpoint-copy {place} holds checkpoints of another run; give an empty place")
    return steps, ours, theirs


def ahead(place: str, folder: Path | None, anew: str | None) -> str | None:
    """The checkpoint that `prepare` would try first, of a copy that is only looked at; None where it takes none.

    Args:
        place: folder or URL of the copy.
        folder: the run folder; None for a new one.
        anew: as of `prepare`.

    Raises:
        ConfigError: the copy is of another run, or cannot be used.
    """
    have = [] if folder is None else checkpoint.found(folder / CHECKPOINTS)
    try:
        with open_store(place) as store:
            steps, _, _ = _looked_at(store, place, folder, anew)
            newest, here = max(steps, default=-1), checkpoint.step_of(have[0]) if have else -1
            return f"{store.url}/{CHECKPOINTS}/{steps[newest][0]}" if newest > here else None
    except OSError as error:
        if folder is not None and (folder / MARK).exists():  # it is tried again
            return None
        raise ConfigError(f"--checkpoint-copy {place} cannot be used: {in_words(error)}") from error


def forget(place: str, step: int) -> None:
    """Delete the checkpoints of later steps from a copy: no machine is to continue from them.

    Raises:
        OSError: the copy cannot be read or written.
    """
    with open_store(place) as store:
        for each, (name, _) in _steps(store).items():
            if each > step:
                store.remove(f"{CHECKPOINTS}/{name}")


def _set_aside(folder: Path) -> set[int]:
    return {checkpoint.step_of(path) for path in checkpoint.unsure(folder / CHECKPOINTS)}


def _forget_unsure(store: Store, folder: Path, after: int) -> None:
    """Delete the copies of later steps that were set aside here; the copy could not be reached then."""
    aside = _set_aside(folder)
    for step, (name, _) in _steps(store).items() if aside else ():
        if step > after and step in aside:
            store.remove(f"{CHECKPOINTS}/{name}")


def _fetch(
    store: Store,
    folder: Path,
    names: list[str],
    layout: str,
    check: Callable[[Path, dict[str, Any]], object],
    must: bool,
) -> None:
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    for name in names:
        path, url = folder / CHECKPOINTS / name, f"{store.url}/{CHECKPOINTS}/{name}"
        aside = partial(path)
        try:
            began = time.monotonic()
            with store.open(f"{CHECKPOINTS}/{name}") as source, open(aside, "xb") as target:
                shutil.copyfileobj(source, target, _COPY)
            sync(aside)
            state = checkpoint.load(aside, layout)
        except CheckpointError as error:
            aside.unlink()
            log.warning("%s", str(error).replace(str(aside), url))
            continue
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        try:
            check(aside, state)
            for record, size in store.sizes().items():
                if 0 <= size <= _LARGEST_RECORD and _is_record(record) and record != MARK:
                    write_whole(folder / record, store.read(record))
            write_whole(folder / MARK, store.read(MARK))
            os.replace(aside, path)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(aside), url)) from error
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)
        log.info("fetched %s in %.0f s", url, time.monotonic() - began)
        return
    if must:
        raise CheckpointError(f"no checkpoint in {store.url} can be read, of {len(names)} tried; give another place")


def _steps(store: Store) -> dict[int, tuple[str, int]]:
    """Names and sizes of a store's checkpoints, by step."""
    sizes = store.sizes(CHECKPOINTS)
    return {
        checkpoint.step_of(Path(name)): (name, size)
        for name, size in sizes.items()
        if checkpoint.is_name(name) and size >= 0
    }


def _records(folder: Path) -> list[Path]:
    """The mark, and the files with the run's records: figures, settings, ids of images."""
    found = [path for path in sorted(folder.iterdir()) if _is_record(path.name) and path.name not in _LEFT_OUT]
    found = [path for path in (folder / MARK, *found) if path.is_file() and not path.is_symlink()]
    return [path for path in found if path.stat().st_size <= _LARGEST_RECORD]


def _is_record(name: str) -> bool:
    return name.endswith((".json", ".jsonl")) and "/" not in name


def _read_mark(read: Callable[[], bytes]) -> str | None:
    with suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        return str(json.loads(read())["run"])
    return None
