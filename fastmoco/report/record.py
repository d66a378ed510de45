"""What a run folder says of its run, read without torch, also while the run writes it."""

from __future__ import annotations

import contextlib
import fcntl
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fastmoco.config import IN_BATCH, loss_scale
from fastmoco.results import standard_error
from fastmoco.runs import status
from fastmoco.runs.environment import shareable
from fastmoco.settings import RECORDED
from shards.errors import UserError
from shards.format.manifest import parse_json

State = Literal["starting", "running", "stopped", "finished", "failed", "lost"]
Kind = Literal["pretraining", "linear", "finetune", "detect"]
FRESH = 60.0
"""Seconds for which a status is believed where the file system has no locks. It is written every five."""
_SIGNS = ("config.json", "metrics.jsonl", "checkpoints", "lock")
"""What shows that a folder is a run's: the first of these appears seconds after the start."""
_LARGEST = 1e100  # of figures that can be drawn; the span of larger ones is infinite


class NoRun(UserError, ValueError):
    """A folder is not a run's. The message names it."""


@dataclass(frozen=True)
class Accuracy:
    """A share of images that were classified right.

    Attributes:
        percent: the share.
        images: their number; None in records that do not have it.
    """

    percent: float
    images: int | None

    @property
    def error(self) -> float | None:
        """Standard error in percentage points."""
        return None if not self.images else standard_error(self.percent, self.images)

    def __str__(self) -> str:
        return f"{self.percent:.1f} %" if self.error is None else f"{self.percent:.1f} ± {self.error:.1f} %"


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder has it at one time.

    Attributes:
        folder: the run folder.
        settings: settings by name, URLs without credentials; empty if there is no readable config.json.
        environment: what it was made with; empty for runs of versions that did not record it.
        records: of metrics.jsonl, in order, each with its `step`.
        busy: whether a process holds the run.
        status: the values of status.json; empty for runs of versions that wrote none.
        changed: when a record was last written, in seconds since 1970.
        name: of the folder, as long as it takes to tell the runs of one page apart.
    """

    folder: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    busy: bool
    changed: float
    name: str
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the run trains."""
        if "detector" in self.settings:
            return "detect"
        if "head_lr" in self.settings:
            return "finetune"
        return "linear" if "fast" in self.settings else "pretraining"

    @property
    def step(self) -> int:
        """Steps done at the last record."""
        return max((record["step"] for record in self.records), default=0)

    @cached_property
    def total_steps(self) -> int | None:
        """Length of the run; None where nothing says it."""
        recorded = self.environment.get("total_steps")
        if isinstance(recorded, int):
            return recorded
        for name in ("steps", "iterations"):
            if isinstance(self.settings.get(name), int):
                return self.settings[name]
        epochs, last = self.settings.get("epochs"), self.records[-1] if self.records else {}
        if isinstance(epochs, int) and is_number(last.get("epoch")) and last["epoch"] > 0:
            return round(epochs * last["step"] / last["epoch"])
        return None

    @property
    def state(self) -> State:
        """Where the run stands: `lost` if its process ended without saying so, as by SIGKILL or with its node."""
        said = self.status.get("state")
        if not self.busy and said in ("stopped", "failed"):
            return said
        if not self.busy and said in ("starting", "running"):
            return "lost"
        if self.total_steps is not None and self.step >= self.total_steps and not self.busy:
            return "finished"
        if self.busy:
            return "running" if self.records else "starting"
        return "stopped"

    @property
    def reason(self) -> str:
        """Why the run stopped or failed; empty where it does neither or nothing says it."""
        reason = self.status.get("reason")
        return reason if isinstance(reason, str) and self.state in ("stopped", "failed") else ""

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """Names and messages of what harmed the run when its status was last written."""
        given = self.status.get("warnings")
        return [
            (str(each.get("name")), str(each.get("message")))
            for each in (given if isinstance(given, list) else [])
            if isinstance(each, dict)
        ]

    @property
    def started(self) -> datetime:
        """When it was last started; for older runs when it last wrote a record. In UTC."""
        with contextlib.suppress(TypeError, ValueError):
            return (
                datetime.fromisoformat(self.environment["date"]) if "date" in self.environment else _utc(self.changed)
            )
        return _utc(self.changed)

    def values(self, name: str) -> list[tuple[Mapping[str, Any], float]]:
        """Records that have a finite figure of this name, each with it."""
        return [(record, record[name]) for record in self.records if is_number(record.get(name))]

    def last(self, name: str) -> float | None:
        """The last finite figure of a name."""
        found = self.values(name)
        return found[-1][1] if found else None

    def rate(self) -> float | None:
        """Median images per second, without the first figure of several: it includes the start-up."""
        rates = [value for _, value in self.values("imgs_per_sec")]
        return statistics.median(rates[1:] or rates) if rates else None

    def wait(self) -> float | None:
        """Mean share of time spent waiting for data, without the first figure of several."""
        waits = [value for _, value in self.values("data_wait")]
        return statistics.fmean(waits[1:] or waits) if waits else None

    def knn(self) -> list[tuple[Mapping[str, Any], Accuracy]]:
        """The kNN probes: records and accuracies."""
        return [(record, Accuracy(value, record.get("knn_images"))) for record, value in self.values("knn_top1")]

    @property
    def chance(self) -> float | None:
        """The loss if all K + 1 logits were equal; None for runs without contrast."""
        settings = self.settings
        if self.kind != "pretraining" or not settings:
            return None
        mechanism = settings.get("mechanism", "queue")
        negatives = settings.get("batch_size", 0) - 1 if mechanism in IN_BATCH else settings.get("queue_size")
        if not isinstance(negatives, int) or negatives <= 0:
            return None
        scale = loss_scale(mechanism, settings.get("symmetric", False), settings.get("temperature", 1.0))
        return scale * math.log(negatives + 1)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the numbers of views from a file in lines of their own, which runs are compared by."""
    views = settings.get("views")
    if not isinstance(views, dict):
        return settings
    tables = {name: table for name, table in views.items() if isinstance(table, dict)}
    numbers = {f"{view}: {name}": value for view, table in tables.items() for name, value in table.items()}
    return settings | {"views": views.get("file")} | numbers


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; raises NoRun if it is none."""
    if not folder.is_dir():
        raise NoRun(f"there is no folder {folder}; give the folder of a run, as runs/moco-v2")
    if not any((folder / sign).exists() for sign in _SIGNS):
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
    """The runs in a folder, the last started first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and (path / "config.json").exists():
            found.append(read_run(path))
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


def is_number(value: object) -> bool:
    """Whether a figure can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def differing(values: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names whose values are not the same in all mappings."""
    every = list(values)
    names = {name for each in every for name in each}
    return {name for name in names if any(each.get(name) != every[0].get(name) for each in every)}


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


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
