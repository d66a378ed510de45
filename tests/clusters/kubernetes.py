"""deploy/kubernetes/train.yaml: the Pods' command as processes, and what the Job does with their exit codes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from _endurance.lives import Life, send
from fastmoco.checkpoints import checkpoint
from tests.clusters.template import ROOT, TINY, changed, free_ports

STEPS = 600
CHANGES = {
    "--nproc-per-node=8": "--nproc-per-node=1",
    "fastmoco-train-0.fastmoco-train:29400": "127.0.0.1:{port}",
    "-m fastmoco train --recipe=moco-v2": f"-m {TINY} --steps {STEPS} --checkpoint-every 100{{more}}",
    "/data/shards": "{shards}",
    "/data/runs/r50": "{run}",
}


class Job:
    """The Job's Pods as processes, by their index.

    Args:
        spec: The Job.
        work: Folder for the logs.

    Attributes:
        completed: Pods that are done.
        failed: Whether the Job has ended with a failure.
        replaced: Exit codes of the Pods that were replaced, in order, with the index and whether they count.
    """

    def __init__(self, spec: dict[str, Any], work: Path) -> None:
        self._spec, self._work = spec["spec"], work
        self._pod = self._spec["template"]["spec"]
        (self._container,) = self._pod["containers"]
        self.completed: set[int] = set()
        self.failed = False
        self.replaced: list[tuple[int, int, bool]] = []
        self._number = 0
        self._lives = {index: self._start(index) for index in range(self._spec["completions"])}

    def _start(self, index: int) -> Life:
        variables = {one["name"]: one["value"] for one in self._container["env"]}
        variables |= {"PYTHONPATH": str(ROOT), "JOB_COMPLETION_INDEX": str(index)}
        variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._number += 1
        line = self._container["command"] + self._container["args"]
        return Life(line, self._work / f"pod-{index}-{self._number}.log", variables)

    def evict(self, index: int) -> float:
        """SIGTERM to a Pod's first process, SIGKILL to all after the grace; the seconds until it ended."""
        life, began = self._lives[index], time.monotonic()
        send(life.launcher, signal.SIGTERM)
        if life.wait(self._pod["terminationGracePeriodSeconds"]) is None:
            life.end()
        return time.monotonic() - began

    def lose(self, index: int) -> None:
        """The node of a Pod is gone."""
        self._lives[index].end()

    def look(self) -> None:
        """Do what Kubernetes does with the Pods that have ended."""
        for index, life in list(self._lives.items()):
            code = life.code
            if code is None:
                continue
            del self._lives[index]
            life.end()
            if code == 0:
                self.completed.add(index)
                continue
            code = 128 - code if code < 0 else code  # as the container's runtime says it
            action = self._action(code)
            if action == "FailJob":
                self.failed = True
                self.end()
                return
            self.replaced.append((index, code, action == "Count"))
            self._lives[index] = self._start(index)

    def _action(self, code: int) -> str:
        for rule in self._spec["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", ()):
                return rule["action"]
        return "Count"

    def until(self, what: str, seconds: float, run: Path | None = None, steps: int = 0) -> None:
        """Look until the Job is over, or a run has so many steps saved."""
        deadline = time.monotonic() + seconds
        while not self.failed and len(self.completed) < self._spec["completions"]:
            if run is not None and checkpoint.steps_done(run / "checkpoints") >= steps:
                return
            assert time.monotonic() < deadline, f"{what}: {self.replaced}, logs in {self._work}"
            self.look()
            time.sleep(0.2)

    def end(self) -> None:
        """End all Pods."""
        for life in self._lives.values():
            life.end()
        self._lives.clear()


def job_of(shards: object, run: Path, work: Path, more: str = "") -> Job:
    """The published Job, with the changes that a machine without GPUs needs."""
    (port,) = free_ports(1)
    changes = {old: new.format(port=port, shards=shards, run=run, more=more) for old, new in CHANGES.items()}
    documents = yaml.safe_load_all(changed(ROOT / "deploy" / "kubernetes" / "train.yaml", changes))
    work.mkdir(parents=True)
    return Job(next(one for one in documents if one["kind"] == "Job"), work)


def check(work: Path, shards: Path) -> str:
    """Evicted Pods are replaced and the run continues to its end; a run that fails ends the Job."""
    diverging = " --lr 1000000 --weight-decay 1"
    failing = job_of(shards, work / "fails", work / "failing", diverging)
    try:
        failing.until("a run that diverges ends the Job", 300)
        assert failing.failed and not failing.completed, failing.replaced
    finally:
        failing.end()
    run = work / "run"
    job = job_of(shards, run, work / "pods")
    try:
        job.until("the run begins", 300, run, 100)
        seconds = job.evict(1)
        before = checkpoint.steps_done(run / "checkpoints")
        job.until("the run continues after the eviction", 300, run, before + 100)
        assert {code for _, code, _ in job.replaced} == {143}, job.replaced
        job.lose(1)
        job.until("the run completes", 600)
        assert job.completed == {0, 1} and checkpoint.steps_done(run / "checkpoints") == STEPS, job.replaced
    finally:
        job.end()
    return f"an evicted Pod ended in {seconds:.0f} s, a lost one was replaced; replaced Pods: {job.replaced}"
