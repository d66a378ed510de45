"""A run that has its turns: between them its processes are stopped, in them it may meet a fault."""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _endurance.disk import full
from _endurance.lives import Life, send, torchrun
from _endurance.made import steps_logged, steps_saved
from _endurance.store import SetServer

BATCH = 32
KINDS = ("kill-rank", "pause", "full-disk", "outage", "refusals", "usr1")
DISK = 1 << 30  # bytes; three checkpoints have 180 MB
FLAGS = ("--recipe", "demo", "--image-size", 32, "--batch-size", BATCH, "--queue-size", 4096)
FLAGS += ("--log-every", 10, "--checkpoint-every", 25)
_BETWEEN = 3.0  # seconds between two looks at memory and open files


class Failed(RuntimeError):
    """A run ended that should go on."""


@dataclass
class Slice:
    """What a run did in one turn.

    Attributes:
        name: of the run.
        fault: of `KINDS`, or "".
        seconds: length of the turn.
        images: trained on in it.
        memory: resident bytes of each process at the end, by process id.
        files: open files of each process, likewise.
    """

    name: str
    fault: str
    seconds: float = 0.0
    images: int = 0
    memory: dict[int, int] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    def row(self) -> dict[str, Any]:
        """The slice in plain values."""
        return asdict(self)

    def __str__(self) -> str:
        total, files = sum(self.memory.values()) / 1e6, sum(self.files.values())
        fault = f", {self.fault}" if self.fault else ""
        return f"{self.name}: {self.rate:.1f} images/s, {total:,.0f} MB, {files} open files{fault}"


class Contender:
    """One of the two runs; a context that ends its processes.

    Args:
        name: of the run.
        home: folder for the run folder and the logs.
        server: the store that it reads.
        steps: length of the run.
        ranks: number of ranks.
        threads: of each rank.

    Attributes:
        run: the run folder.
        starts: number of starts by the same command.
        finished: whether all steps are done.
    """

    def __init__(self, name: str, home: Path, server: SetServer, steps: int, ranks: int, threads: int) -> None:
        self.name, self.run, self.starts, self.finished = name, home / "run", 0, False
        self._home, self._server, self._ranks, self._threads = home, server, ranks, threads
        self._flags = ["--shards", server.url, "--out", self.run, "--steps", steps, "--threads", threads]
        self._life = self._start()
        self._stop()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        self._life.end()

    def _start(self) -> Life:
        self.starts += 1
        line = torchrun(self._ranks, "static", 1000, ["fastmoco.train", *FLAGS, *self._flags])
        # a cache that holds nothing: every image is a request, at any time of the run
        variables = {"FASTMOCO_CACHE": str(self._home.parent / "cache"), "FASTMOCO_CACHE_BYTES": "1"}
        log = self._home.parent / f"{self._home.name}-{self.starts}.log"
        return Life(line, log, variables | {"OMP_NUM_THREADS": str(self._threads)})

    def _stop(self) -> None:
        for pid in self._life.processes():
            send(pid, signal.SIGSTOP)

    def turn(self, seconds: float, fault: str, chance: random.Random) -> Slice:
        """Go on for some seconds, or until the run has finished; a fault begins in the first third.

        Raises:
            Failed: the run ended with a failure.
        """
        done = Slice(self.name, fault)
        began, before = time.monotonic(), steps_logged(self.run)
        for pid in self._life.processes():
            send(pid, signal.SIGCONT)
        if fault:
            self._life.wait(chance.uniform(0.05, 0.3) * seconds)
            self._strike(fault, chance, seconds / 3)
        while (left := seconds - (time.monotonic() - began)) > 0 and not self.finished:
            if self._life.wait(min(left, _BETWEEN)) is not None:
                self._again()
        done.images, done.seconds = (steps_logged(self.run) - before) * BATCH, time.monotonic() - began
        for pid in self._life.processes():
            done.memory[pid], done.files[pid] = looked_at(pid)
        if not self.finished:
            self._stop()
        return done

    def _again(self) -> None:
        """The command has ended: the run has finished, has stopped in order, or has failed."""
        said = json.loads((self.run / "status.json").read_text(encoding="utf-8"))["state"]
        self.finished = said == "finished"
        if said == "stopped":
            self._life.end()
            self._life = self._start()
        elif not self.finished:
            raise Failed(f"{self.name} has {said} with exit code {self._life.code}; see {self._home.parent}")

    def _strike(self, fault: str, chance: random.Random, seconds: float) -> None:
        ranks, life = self._life.ranks(), self._life
        if fault == "usr1":
            send(life.launcher, signal.SIGUSR1)
        elif fault in ("kill-rank", "pause") and ranks:
            pid = ranks[chance.choice(sorted(ranks))]
            send(pid, signal.SIGKILL if fault == "kill-rank" else signal.SIGSTOP)
            if fault == "pause":
                life.wait(seconds)
                send(pid, signal.SIGCONT)
        elif fault == "full-disk":
            with full(self._home, life):
                life.wait(seconds)
        elif fault in ("outage", "refusals"):
            self._server.away, self._server.every = fault == "outage", 5 if fault == "refusals" else 0
            life.wait(seconds)
            self._server.away, self._server.every = False, 0


def looked_at(pid: int) -> tuple[int, int]:
    """Resident bytes and open files of a process; zeros if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text().split()[1])
        return pages * 4096, len(list((folder / "fd").iterdir()))
    except OSError:
        return 0, 0


def calibrated(work: Path, ranks: int, threads: int, minutes: float, seconds: float) -> int:
    """Steps that each of two runs makes in half of some minutes, by the speed of a first short run."""
    run, steps = work / "first", 60
    flags = [*FLAGS, "--shards", work / "set", "--out", run, "--steps", steps, "--threads", threads]
    line = torchrun(ranks, "static", 0, ["fastmoco.train", *flags])
    log = work / "first.log"
    life = Life(line, log, {"OMP_NUM_THREADS": str(threads)})
    if life.wait(600) != 0 or steps_saved(run) != steps:
        life.end()
        raise Failed(log.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = sorted(one["imgs_per_sec"] for one in lines if one.get("step", 0) > 10 and "loss" in one)
    # a fifth of the time goes to starts and faults; the last slices of both are cut short
    return max(200, int(0.8 * rates[len(rates) // 2] * (minutes * 30 - seconds) / BATCH))
