"""What a run folder says of its run: the records, and what follows from them."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fastmoco.config import IN_BATCH, loss_scale
from fastmoco.results import standard_error

State = Literal["starting", "running", "stopped", "finished", "failed", "lost"]
Kind = Literal["pretraining", "linear", "finetune", "detect"]
_LARGEST = 1e100  # of figures that can be drawn; the span of larger ones is infinite


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
        """Steps done: of the status, which is seconds old, or at the last record."""
        said = self.status.get("step")
        return max(said if type(said) is int else 0, max((record["step"] for record in self.records), default=0))

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
        rates = self.rates()
        return statistics.median(rates.values()) if rates else None

    def rates(self) -> dict[int, float]:
        """Images per second by step, without the first figure of several: it includes the start-up."""
        rates = [(record["step"], value) for record, value in self.values("imgs_per_sec")]
        return dict(rates[1:] or rates)

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


def is_number(value: object) -> bool:
    """Whether a figure can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def differing(values: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names whose values are not the same in all mappings."""
    every = list(values)
    names = {name for each in every for name in each}
    return {name for name in names if any(each.get(name) != every[0].get(name) for each in every)}


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
