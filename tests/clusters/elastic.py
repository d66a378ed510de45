"""A node of an elastic run is lost, and another joins, within an epoch: torchrun as docs/training.md has it."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _endurance.lives import Life, free_port
from _endurance.made import steps_saved
from fastmoco.demo.made import make_images
from tests.support.sets import pack_set

STEPS, BATCH, PACE = 400, 4, 0.25  # one epoch; a step's seconds while nodes come and go
REST = 30  # steps between two changes
BOUND = 240  # seconds for a change of nodes: a lost one is noticed after ten, and the next start takes twenty or so


class Broken(AssertionError):
    """The run does not do what the docs say."""


def check(folder: Path, _: Path) -> str:
    """Lose the second node of two, go on with one, take a new one in, and end; what happened, in words."""
    make_images(folder / "photos", classes=4, per_class=STEPS * BATCH // 4, size=32, seed=0)
    own = pack_set(folder / "photos", folder / "set", shard_size=400)
    record = folder / "record"
    record.mkdir()
    port, lives, said = free_port(), list[Life](), []

    def node() -> Life:
        lives.append(Life(_agent(own, folder / "run", port), folder / f"node-{len(lives)}.log", _variables(record)))
        return lives[-1]

    def wait(ranks: int, step: int) -> int:
        """Wait until a run of this number of ranks has made step number `step`; the newest step."""
        return _wait_for(lives[0], lambda: next((s for s, r in _newest(record) if r == ranks and s >= step), None))

    try:
        first = node()
        _wait_for(first, lambda: 0 if _answers(port) else None)  # on one machine, any node may be the rendezvous' host
        lost = node()
        step = wait(2, REST)
        for ranks, change in ((1, lost.end), (2, node)):
            began = time.monotonic()
            change()
            after = wait(ranks, step - 10)  # a checkpoint every 7 steps
            said.append(f"{3 - ranks} to {ranks} ranks at step {step} in {time.monotonic() - began:.0f} s")
            step = wait(ranks, after + REST)
        (record / "fast").touch()
        for life in (lives[0], lives[2]):
            if life.wait(BOUND) != 0:
                raise Broken(f"a node ended with {life.code}; see {folder}")
    finally:
        for life in lives:
            life.end()
    _check(record, folder / "run")
    return "; ".join(said) + f"; each of {STEPS * BATCH:,} ids seen once"


def _agent(shards: Path, run: Path, port: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", 1, "--max-restarts", 100]
    torchrun += ["--rdzv-id", "elastic", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    torchrun += ["--rdzv-conf", "last_call_timeout=15,keep_alive_interval=2,keep_alive_max_attempt=5"]
    flags = ["--recipe", "demo", "--image-size", 32, "--batch-size", BATCH, "--queue-size", 40, "--threads", 1]
    flags += ["--steps", STEPS, "--log-every", 3, "--checkpoint-every", 7, "--shards", shards, "--out", run]
    return [sys.executable, *map(str, [*torchrun, "-m", "tests.clusters.recording", *flags])]


def _variables(record: Path) -> dict[str, str]:
    return {"RECORD": str(record), "PACE": str(PACE), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(first: Life, found: Callable[[], int | None]) -> int:
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        if first.code is not None:
            raise Broken(f"the first node ended with {first.code}")
        if (step := found()) is not None:
            return step
        time.sleep(0.2)
    raise Broken(f"the run has not gone on within {BOUND} s")


def _lines(record: Path, rank: int) -> list[dict]:
    path = record / f"{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _newest(record: Path) -> list[tuple[int, int]]:
    """The newest step and its number of ranks, as rank 0 has made it."""
    return [(line["step"], line["ranks"]) for line in _lines(record, 0)[-1:]]


def _check(record: Path, run: Path) -> None:
    """Each step counts as it was made last."""
    last = [{line["step"]: line for line in _lines(record, rank)} for rank in (0, 1)]
    ids = [i for step, line in last[0].items() for rank in range(line["ranks"]) for i in last[rank][step]["ids"]]
    if sorted(ids) != list(range(STEPS * BATCH)):
        raise Broken(f"{len(ids)} ids, {len(set(ids))} different ones, of {STEPS * BATCH}")
    if {line["ranks"] for line in last[0].values()} != {1, 2} or steps_saved(run) != STEPS:
        raise Broken(f"{steps_saved(run)} of {STEPS} steps are saved")
