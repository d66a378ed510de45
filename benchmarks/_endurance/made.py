"""What a run has made, compared with what another one made: checkpoint, figures, and the images it gave up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastmoco.checkpoints import checkpoint

OF_TIME = {"imgs_per_sec", "data_wait"}
"""Figures that no two runs share."""
OF_THE_FILE = {"config", "sha256"}
"""Parts of a checkpoint that name its run folder, or hash what does."""


def differences(run: Path, other: Path) -> list[str]:
    """What differs between two finished runs, in words; empty if they are equal bit for bit."""
    found = [f"checkpoint: {what}" for what in _unequal(_final(run), _final(other), "")]
    ours, theirs = figures(run), figures(other)
    if ours != theirs:
        wrong = [record for record in ours if record not in theirs]
        missing = [record["step"] for record in theirs if record not in ours]
        found.append(f"metrics: {len(ours)} records instead of {len(theirs)}; steps without theirs {missing[:5]}")
        found += [f"metrics: {record}" for record in wrong[:2]]
    quarantine = run / "quarantine.jsonl"
    if quarantine.exists() and quarantine.read_text(encoding="utf-8"):
        found.append("good images were replaced: " + quarantine.read_text(encoding="utf-8").splitlines()[0])
    return found


def figures(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl that a repetition of the run has too: no warnings, no figures of time."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        {name: value for name, value in record.items() if name not in OF_TIME}
        for record in records
        if "loss" in record or "knn_top1" in record
    ]


def steps_logged(run: Path) -> int:
    """The step of the newest figures in metrics.jsonl, 0 without any."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().splitlines()[::-1]
    except FileNotFoundError:
        return 0
    return next((json.loads(line)["step"] for line in lines if line[:1] == b"{" and line[-1:] == b"}"), 0)


def steps_saved(run: Path) -> int:
    """Steps of a run's newest checkpoint, 0 without one."""
    return checkpoint.steps_done(run / "checkpoints")


def _final(run: Path) -> dict[str, Any]:
    state = checkpoint.load(checkpoint.found(run / "checkpoints")[0])
    return {name: value for name, value in state.items() if name not in OF_THE_FILE}


def _unequal(ours: Any, theirs: Any, place: str) -> Iterator[str]:
    if type(ours) is not type(theirs):
        yield f"{place}: {type(ours).__name__} and {type(theirs).__name__}"
    elif isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            yield f"{place}: {sorted(map(str, ours.keys() ^ theirs.keys()))} on one side only"
        for name in ours.keys() & theirs.keys():
            yield from _unequal(ours[name], theirs[name], f"{place}.{name}" if place else str(name))
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            yield f"{place}: {len(ours)} and {len(theirs)} entries"
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            yield from _unequal(one, other, f"{place}[{number}]")
    elif isinstance(ours, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield place
    elif ours != theirs:
        yield f"{place}: {ours!r} and {theirs!r}"
