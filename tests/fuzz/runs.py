"""Damaged files of a run folder through all that reads them, and damaged checkpoints with a sound one before them."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastmoco.api.pretraining import Run
from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.content import sealed
from fastmoco.config import Config, ConfigError
from fastmoco.config_file import read as read_settings
from fastmoco.recipes import moco_v2
from fastmoco.report import show
from fastmoco.report.reading import NoRun
from fastmoco.runs import folder as folders
from fastmoco.runs.appended import rewind
from fastmoco.trainer.resume import check_compatible, compare
from pipelines.quarantine import Quarantine
from shards.errors import UserError
from tests.fuzz import weights
from tests.fuzz.faults import ACCEPTED, Field, Kind

_DIGEST = "a" * 64
_CONFIG = replace(moco_v2(), arch="resnet10", image_size=32, batch_size=8, queue_size=24, feature_dim=16)


def _lines(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@functools.cache
def _whole() -> dict[str, bytes]:
    environment = {"ranks": 1, "steps_per_epoch": 8, "total_steps": 80, "commit": "abc", "device": "cpu"}
    status = {
        "state": "running", "reason": None, "step": 3, "total_steps": 80, "epoch": 0.4, "figures": {"loss": 3.5},
        "pid": 1, "warnings": [{"name": "disk", "message": "it is full", "step": 2}], "host": "here", "ranks": 1,
        "updated": 1_700_000_000.0, "time_left_seconds": 5.0, "last_checkpoint": "checkpoints/step-00000002.pt",
    }  # fmt: skip
    figures = [{"step": step, "epoch": step / 8, "loss": 5 / step, "lr": 0.03, "spread": 0.9} for step in range(1, 9)]
    bad = {
        "sample": 3,
        "shard": "shard-00000.tar",
        "key": "0000",
        "cause": "x",
        "replaced_by": 4,
        "epoch": 0,
        "step": 1,
    }
    return {
        "config.json": json.dumps({**_CONFIG.to_dict(), "environment": environment}).encode(),
        "metrics.jsonl": _lines(*figures[:4], {"step": 4, "warning": "disk", "message": "it is full"}, *figures[4:]),
        "status.json": json.dumps(status).encode(),
        "quarantine.jsonl": _lines({**bad, "rank": 0, "undecodable_in": _DIGEST}, {**bad, "rank": 1}),
        "config.toml": b'arch = "resnet18"\nbatch-size = 8\nlr = 0.1\nmilestones = [0.6, 0.8]\n',
    }


def _originals() -> list[bytes]:
    # the first line names the file
    return [f"{name}\n".encode() + content for name, content in _whole().items()]


def _of_text(data: bytes) -> list[Field]:
    return [Field(place, "<B") for place, byte in enumerate(data) if byte in b'{}[]":,-0123456789' and place > 12]


def _bent(data: bytes, rng: np.random.Generator) -> bytes:
    """Now and then, something that only a text can be: numbers without end, nesting, letters that rule a terminal."""
    name, _, content = data.partition(b"\n")
    values = [
        b"1e999", b"NaN", b"9" * 5000, b"[" * 100_000, b'"\\u001b[2J\\n"', b'"\\ud800"', b'"x"', b"null", b"[]",
        b"{}", b"-1", b"true", b'{"a": [1, {"b": 2}]}', b"10000000000000000000000", b"1.5",
    ]  # fmt: skip
    if rng.random() < 0.5:
        places = [place for place, byte in enumerate(content[:-1]) if byte in b":[,"]
        if places:
            place = places[rng.integers(len(places))] + 1
            ends = [content.find(stop, place) for stop in (b",", b"}", b"]")]
            end = min((at for at in ends if at >= 0), default=place)
            content = content[:place] + values[rng.integers(len(values))] + content[end:]
    return name + b"\n" + content


def _outcome(data: bytes, number: int, folder: Path) -> str:
    """A run folder with one damaged file: its page, its continuation, and a new run beside it."""
    name, _, content = data.partition(b"\n")
    damaged = name.decode("latin1") if name.decode("latin1") in _whole() else list(_whole())[number % len(_whole())]
    run = folder / "runs/a"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    run.mkdir(parents=True)
    for file, whole in _whole().items():
        (run / file).write_bytes(content if file == damaged else whole)
    os.chdir(folder)
    said = []
    readers = [
        lambda: show.run(show.Args((run,), out=folder / "page.html")),
        lambda: show.run(show.Args(())),
        lambda: Run(run).metrics,
        lambda: list(folders._earlier(_wanted())),
        lambda: read_settings(run / ("config.toml" if damaged == "config.toml" else "config.json"), Config),
        lambda: Quarantine(run / "quarantine.jsonl", _DIGEST, 0),
        lambda: rewind(run / "metrics.jsonl", 5),
    ]
    for read in readers:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                read()
        except (NoRun, ConfigError, UserError) as error:
            said.append(str(error).replace(str(folder), ""))
    left = (run / "metrics.jsonl").read_bytes()
    if any(json.loads(line)["step"] > 5 for line in left.splitlines()):
        return "FAULT: records of later steps are left"
    return "rejected: " + said[0] if said else ACCEPTED


def _wanted() -> folders.Wanted:
    return folders.Wanted(
        "moco", 80, lambda folder, recorded: compare(folder, recorded, _CONFIG, 64, _DIGEST), "another --out"
    )


RUN = Kind(_originals, _of_text, _bent, _outcome)


def _newest_outcome(data: bytes, number: int, folder: Path) -> str:
    """A folder whose newest checkpoint is damaged: it is named in a line, and the one before it is taken."""
    (folder / "step-00000012.pt").write_bytes(_sound())
    (folder / "step-00000024.pt").write_bytes(data)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fastmoco").addHandler(handler)
    try:
        for path, state in checkpoint.sound(folder):
            try:
                with checkpoint.fitting(path):  # as in `choosing.load_chosen`
                    check_compatible(path, state, weights._CONFIG, weights._DIGEST)
                    weights._step().load_state(state)
            except checkpoint.Unfit as error:
                said.append(str(error))
                continue
            if path.name == "step-00000024.pt":
                return ACCEPTED
            if len(said) != 1 or str(folder / "step-00000024.pt") not in said[0] or "\n" in said[0]:
                return f"FAULT: the damaged one is not named in a line: {said}"
            return "rejected: " + said[0].replace(str(folder), "")
    except (checkpoint.CheckpointError, ConfigError) as error:  # of another run, by its settings
        return "rejected: " + str(error).replace(str(folder), "")
    finally:
        logging.getLogger("fastmoco").removeHandler(handler)
    return "FAULT: the one before it is not taken"


@functools.cache
def _sound() -> bytes:
    state = weights._state()
    return weights.saved({**state, "progress": {**state["progress"], "step": 12}})


def _checkpoints() -> list[bytes]:
    state = weights._state()
    return [weights.saved(state), weights.saved(sealed(state)), weights.saved(state, zipped=False)]


RESUME = Kind(functools.cache(_checkpoints), weights._of_checkpoint, weights._repair, _newest_outcome)
