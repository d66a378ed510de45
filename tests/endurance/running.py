"""Undisturbed runs, disturbed ones, and what must hold of these."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from _endurance.disk import small_disk
from _endurance.lives import Life, torchrun
from _endurance.made import differences, steps_logged, steps_saved
from tests.endurance.faults import strike
from tests.endurance.plan import Case
from tests.support.faulty import Faults, FaultyServer

FLAGS = ("--recipe", "demo", "--image-size", 32, "--batch-size", 12, "--queue-size", 40, "--threads", 2)
# no interval divides another, so that a stop finds sums of steps that no line has told yet
FLAGS += ("--log-every", 3, "--checkpoint-every", 7, "--knn-every", 5)
RESTARTS = 3
# Seconds after which ranks give up one that does not answer: a busy machine takes half of them to start. A rank may
# wait for its images as long as the store's wait, which the others' patience must exceed by more than a minute.
RANK_TIMEOUT, WITH_OUTAGE, STORE_WAIT = 60, 210, 120
DISK = 8 << 20  # bytes of the small disk: a run folder has about 2 MB
GRACE = 30  # seconds between torchrun's SIGTERM and its SIGKILL
STARTS = {"kill-agent": 2, "kill-all": 2, "term": 2, "usr1": 2, "int": 2, "full-disk": 2}
"""Starts that a run may need; torchrun has to help the others by itself."""


class Broken(AssertionError):
    """Something that must hold of a disturbed run does not."""


@dataclass(frozen=True)
class Undisturbed:
    """The undisturbed run: its folder and steps, and how long it took until the first was logged, and to its end."""

    run: Path
    steps: int
    first: float
    seconds: float

    def wait_for(self, share: float, life: Life, run: Path) -> None:
        """Wait for the moment of a run after which this share of the life is over, or for the run's end.

        Until the first step the clock counts, and from then on the steps, whatever else the machine does.
        """
        moment = share * self.seconds
        if moment < self.first:
            life.wait(moment)
            return
        share = (moment - self.first) / (self.seconds - self.first)
        # the end of the last step is not that of the processes: a twentieth is left for what comes after it
        step = min(self.steps, 1 + int(share * self.steps / 0.95))
        while life.code is None and steps_logged(run) < step:
            time.sleep(0.02)
        life.wait(share % 0.05)  # anywhere between two steps that are logged


@dataclass
class Place:
    """Where the runs are made.

    Args:
        work: Folder for everything; the packed set is in `set`.
        server: Serves that set.
        steps: Length of a run.
        bound: Factor to the time that an undisturbed run takes, after which a run hangs.

    Attributes:
        undisturbed: The undisturbed runs, by the number of ranks.
    """

    work: Path
    server: FaultyServer
    steps: int = 104
    bound: float = 5.0
    undisturbed: dict[int, Undisturbed] = field(default_factory=dict)

    def line(self, run: Path, ranks: int, rendezvous: str, shards: object, patience: int = RANK_TIMEOUT) -> list[str]:
        """The command of a run: under torchrun, but for a single process."""
        flags = [*FLAGS, "--knn-train", self.work / "set", "--knn-val", self.work / "set"]
        flags += ["--steps", self.steps, "--rank-timeout", patience / 60, "--shards", shards, "--out", run]
        if ranks == 1:
            return [sys.executable, "-m", "tests.endurance.tiny", *map(str, flags)]
        return torchrun(ranks, rendezvous, RESTARTS, ["tests.endurance.tiny", *flags])

    def reference(self, ranks: int) -> Undisturbed:
        """The undisturbed run with so many ranks, which is made once."""
        if ranks not in self.undisturbed:
            run = self.work / f"undisturbed-{ranks}" / "run"
            run.parent.mkdir(parents=True)
            life = Life(self.line(run, ranks, "static", self.work / "set"), run.parent / "log")
            try:
                while not steps_logged(run) and life.wait(0.1) is None:
                    pass
                first, code = time.monotonic() - life.began, life.wait(600)
            finally:
                life.end()
            if code != 0:
                raise Broken(f"the undisturbed run ended with {code}: {run.parent}/log")
            self.undisturbed[ranks] = Undisturbed(run, self.steps, first, time.monotonic() - life.began)
        return self.undisturbed[ranks]


def endure(case: Case, place: Place) -> str:
    """Make a run with the case's fault, by the same command until it has finished.

    Returns:
        What happened, in words.

    Raises:
        Broken: What must hold does not; the run's folder is kept.
    """
    reference = place.reference(case.ranks)
    folder = place.work / f"{case.number:03d}-{case.kind}"
    folder.mkdir()
    with small_disk(folder, DISK) if case.kind == "full-disk" else nullcontext():
        try:
            told = _lives(case, place, folder, reference)
            wrong = differences(folder / "run", reference.run)
            if wrong:
                raise Broken("; ".join(wrong[:6]) + f" ({len(wrong)} differences)")
        except Broken:
            if folder.is_mount():  # what is on the small disk is gone with it
                shutil.copytree(folder, f"{folder}-kept")
            raise
    shutil.rmtree(folder)
    return told


def _lives(case: Case, place: Place, folder: Path, reference: Undisturbed) -> str:
    run, server = folder / "run", place.server
    shards = f"{server.url}/set" if case.kind == "outage" else place.work / "set"
    patience = WITH_OUTAGE if case.kind == "outage" else RANK_TIMEOUT
    line, began, told = place.line(run, case.ranks, case.rendezvous, shards, patience), time.monotonic(), ""
    variables = {"FASTMOCO_CACHE": str(place.work / "cache"), "FASTMOCO_CACHE_BYTES": "1"}
    variables["FASTMOCO_STORE_WAIT"] = str(STORE_WAIT)
    for start in range(1, STARTS.get(case.kind, 1) + 1):
        life = Life(line, _log(folder, start), variables)
        try:
            if start == 1:
                reference.wait_for(case.share, life, run)
                step, struck = steps_logged(run), time.monotonic()
                missed = strike(case, life, run, server)
                told = f"at {struck - life.began:.1f} s, step {step}" + (missed and f" ({missed})")
            # a rank that is stopped for ever is given up, asked to end, and killed
            code = life.wait(place.bound * reference.seconds + 60 + RANK_TIMEOUT + GRACE)
            if code is None:
                raise Broken(f"start {start} hangs: {life.processes()}; {_log(folder, start)}")
            _check_the_end(case, life, run, start)
        finally:
            server.faults = Faults()
            life.end()
        if code == 0 and steps_saved(run) == place.steps:
            return f"{told}; {start} start{'s'[: start > 1]}, {time.monotonic() - began:.0f} s"
    raise Broken(
        f"after {start} starts {steps_saved(run)} of {place.steps} steps are saved ({told}); {_log(folder, start)}"
    )


def _log(folder: Path, start: int) -> Path:
    """The log of a start: beside a small disk, not on it."""
    return folder.parent / f"{folder.name}-log-{start}"


def _check_the_end(case: Case, life: Life, run: Path, start: int) -> None:
    """Nothing lives on, nothing half written is left, and a stop has lost no step."""
    deadline = time.monotonic() + 5
    while left := life.processes():
        if time.monotonic() > deadline:
            raise Broken(f"processes of start {start} live on: {left}")
        time.sleep(0.1)
    status = run / "status.json"
    if not status.exists() or case.kind.startswith("kill") or start > 1:
        return
    said = json.loads(status.read_text(encoding="utf-8"))
    if said["state"] not in ("stopped", "finished", "failed"):
        raise Broken(f"status.json says {said['state']} of a run that has ended")
    if said["state"] == "stopped" and steps_saved(run) != said["step"]:
        raise Broken(f"stopped after step {said['step']}, but step {steps_saved(run)} is saved")
