"""Reads run folders, without torch, also while the run writes them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastmoco.report.record import RunRecord, is_number
from fastmoco.results import is_run
from fastmoco.runs import status
from fastmoco.runs.environment import shareable
from fastmoco.settings import RECORDED
from shards.errors import UserError
from shards.format.manifest import parse_json
from shards.words import display, in_words

log = logging.getLogger(__name__)

FRESH = 60.0
"""Seconds for which a status is believed where the file system has no locks. It is written every five."""


class NoRun(UserError, ValueError):
    """A folder is not a run's. The message names it."""


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; raises NoRun if it is none."""
    if not folder.is_dir():
        raise NoRun(f"there is no folder {folder}; give the folder of a run, as runs/moco-v2")
    if not is_run(folder):
        raise NoRun(f"{folder} is not the folder of a run: it has no config.json; give one that training wrote")
    config, changed = _json(folder / "config.json"), 0.0
    for name in ("metrics.jsonl", "config.json"):
        with contextlib.suppress(OSError):
            changed = max(changed, (folder / name).stat().st_mtime)
    environment, said = config.get("environment"), status.read(folder)
    return RunRecord(
        folder,
        shareable(_flat({name: value for name, value in config.items() if name not in RECORDED})),
        shareable(environment) if isinstance(environment, dict) else {},
        read_metrics(folder / "metrics.jsonl"),
        _held(folder / "lock", said),
        changed or folder.stat().st_mtime,
        folder.name or folder.resolve().name,
        said,
    )


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read several run folders; those of one name are named by their paths. Raises NoRun for one that is none."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=str(run.folder)) for run in runs]


def runs_below(folder: Path) -> list[RunRecord]:
    """The runs in a folder, the last started first; those that cannot be read, as of another user, are warned of."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if path.is_dir() and not path.is_symlink() and (path / "config.json").exists():
                found.append(read_run(path))
        except OSError as error:
            log.warning("%s is left out: %s", display(path.name), in_words(error))
    return sorted(found, key=lambda run: (-run.started.timestamp(), run.name))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order; lines that are incomplete or damaged are left out."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = parse_json(line)
            if isinstance(record, dict) and type(record.get("step")) is int and is_number(record.get("epoch", 0)):
                records.append(record)
    return records


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the numbers of views from a file in lines of their own, which runs are compared by."""
    views = settings.get("views")
    if not isinstance(views, dict):
        return settings
    tables = {name: table for name, table in views.items() if isinstance(table, dict)}
    numbers = {f"{view}: {name}": value for view, table in tables.items() for name, value in table.items()}
    return settings | {"views": views.get("file")} | numbers


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        content = parse_json(path.read_bytes())
        return content if isinstance(content, dict) else {}
    return {}


def _held(lock: Path, said: Mapping[str, Any]) -> bool:
    """Whether a process holds the run folder's lock; on file systems without locks, whether its status is fresh."""
    try:
        # an empty one is about to be taken: a lock of ours, however short, must not be in the way
        with lock.open("rb") as file:
            if not file.read(1):
                return True
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            age = datetime.now(timezone.utc) - datetime.fromisoformat(said["updated"])
            return said["state"] in ("starting", "running") and age.total_seconds() < FRESH
    return False
