"""Default run folders: where a new run goes, and which earlier run a command continues."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmoco.checkpoints import checkpoint
from fastmoco.flags import ConfigError, flag
from fastmoco.ranks.world import World, from_main
from fastmoco.runs.lock import only_writer
from fastmoco.runs.status import reported
from shards.format.manifest import parse_json

log = logging.getLogger(__name__)

RUNS = Path("runs")
"""Where runs without --out go."""
LATEST = "latest"
"""Name of the link beside the runs to the training that was started last."""


@dataclass(frozen=True)
class Wanted:
    """The run that a command asks for.

    Args:
        stem: what the name of a new folder begins with, as `moco-v2-resnet50`.
        total_steps: its length.
        differences: given an earlier run's folder and its config.json, returns the settings that differ, each as text,
            first those under which that run cannot be continued, then the others; None for a run of another kind.
        anew: what to give for a new run.
        earlier: whether an earlier run may be continued.
    """

    stem: str
    total_steps: int
    differences: Callable[[Path, dict[str, Any]], tuple[list[str], list[str]] | None]
    anew: str = "another --out"
    earlier: bool = True


@contextmanager
def run_folder(out: Path | None, here: World, wanted: Wanted, notify: str | None = None) -> Iterator[Path]:
    """The folder of a run, which no other process writes to while the block runs; the same on all ranks.

    Without --out it is that of the newest unfinished run under `RUNS` with the same settings, else of a finished one,
    else a new one. A new folder that is still empty after the block is removed.

    Args:
        out: the folder that the user gave.
        here: this rank.
        wanted: the run.
        notify: command that is told of the run's end and warnings; see `notify`.

    Raises:
        FolderInUse, ConfigError: another process writes to the folder, or it cannot be written.
    """
    if out is not None:
        with removed_if_empty(out, here), only_writer(out, here), reported(out, here, notify):
            yield out
        return
    folder = from_main(here, lambda: _choose(wanted))
    try:
        with only_writer(folder, here, wanted.anew), reported(folder, here, notify):
            yield folder
    finally:
        if here.is_main:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def removed_if_empty(folder: Path, here: World) -> Iterator[None]:
    """Remove, after the block, a folder that was missing before it and is empty, and parents that were, too."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()] if here.is_main else []
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, and so its parents are not; or not made
            for each in missing:
                each.rmdir()


def mark_latest(folder: Path) -> None:
    """Let `latest` in `RUNS` link to a run there; nothing for a run elsewhere."""
    folder, link = folder.resolve(), RUNS / LATEST
    if folder.parent != RUNS.resolve() or (link.exists() and not link.is_symlink()):
        return
    aside = link.with_name(f"{LATEST}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # a file system without links
        aside.symlink_to(folder.name)
        os.replace(aside, link)


def same_identity(
    key: str, identity: dict[str, Any], free: dict[str, Any], folder: Path, recorded: dict[str, Any]
) -> tuple[list[str], list[str]] | None:
    """`Wanted.differences` of runs that record under `key` what determines their result.

    Args:
        key: key of config.json, by which such runs are told from others.
        identity: what determines the result of the wanted run.
        free: settings that may change while a run is continued.
        folder: not used.
        recorded: config.json of an earlier run.
    """
    if not isinstance(recorded.get(key), dict):
        return None
    fixed = checkpoint.differences(recorded[key], json.loads(json.dumps(identity)))  # as JSON has it
    before = {flag(name): recorded.get(name) for name in free}
    return fixed, checkpoint.differences(before, {flag(name): value for name, value in free.items()})


@dataclass(frozen=True)
class _Earlier:
    folder: Path
    steps: int
    fixed: list[str]
    free: list[str]


def continued(wanted: Wanted) -> Path | None:
    """The earlier run that a command without --out takes; None where it begins a new one.

    Of those with its settings it is the newest unfinished one, else a finished one.
    """
    return _continued(wanted, _all_earlier(wanted))


def _continued(wanted: Wanted, earlier: list[_Earlier]) -> Path | None:
    same = [run for run in earlier if not run.fixed and not run.free]
    unfinished = [run for run in same if run.steps < wanted.total_steps]
    if unfinished:
        folder, among = unfinished[0].folder, f", the newest of {len(unfinished)}" if len(unfinished) > 1 else ""
        log.info("%s is an unfinished run of the same settings%s; for a new run, give %s", folder, among, wanted.anew)
        return folder
    return same[0].folder if same else None


def _choose(wanted: Wanted) -> Path:
    earlier = _all_earlier(wanted)
    if (same := _continued(wanted, earlier)) is not None:
        return same
    folder = _new(wanted.stem)
    # what cannot be continued is not what was meant
    near = [run for run in earlier if not run.fixed and 0 < run.steps < wanted.total_steps]
    if near:
        other, what = near[0].folder, "; ".join(near[0].free)
        log.info("new run in %s; %s differs (%s): to continue it, give --out %s", folder, other, what, other)
    else:
        log.info("new run in %s", folder)
    return folder


def _all_earlier(wanted: Wanted) -> list[_Earlier]:
    return list(_earlier(wanted)) if wanted.earlier else []


def _earlier(wanted: Wanted) -> Iterator[_Earlier]:
    """Runs of the wanted kind, the last started first."""
    found = []
    for path in RUNS.glob("*/config.json"):
        with contextlib.suppress(OSError, ValueError):  # removed meanwhile, or not written by a run
            if not path.parent.is_symlink():
                found.append((path.stat().st_mtime_ns, path.parent, parse_json(path.read_bytes())))
    for _, folder, recorded in sorted(found, key=lambda each: each[:2], reverse=True):
        differences = wanted.differences(folder, recorded) if isinstance(recorded, dict) else None
        if differences is not None:
            yield _Earlier(folder, checkpoint.steps_done(folder / "checkpoints"), *differences)


def _new(stem: str) -> Path:
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        RUNS.mkdir(exist_ok=True)
        for number in range(1, 10_000):
            folder = RUNS / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):  # of a run that was started in the same second
                folder.mkdir()
                return folder
    except OSError as error:
        raise ConfigError(
            f"{RUNS} cannot be written: {error.strerror}; give --out a folder that you may write to"
        ) from error
    raise ConfigError(f"{RUNS} has 10,000 runs named {name}; give --out")
