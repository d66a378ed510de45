"""One run of an experiment: the commands that train and probe an encoder, and the rows of their results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _environment import environment
from _learning.experiments import Flags, Variant
from _processes import environ
from fastmoco.config import Config

SETTINGS = (
    *("mechanism", "arch", "head", "augmentation", "image_size", "batch_size", "negatives", "momentum_key"),
    *("temperature", "base_lr", "base_batch_size", "lr", "weight_decay", "schedule", "warmup", "zero_init_residual"),
    *("bn_splits", "precision", "knn_k", "knn_temperature"),
)
"""Settings in a row."""
LINEAR = ("linear", "fast")
"""The linear probes: on random crops, and on features of centre crops computed once."""


UNTRAINED = "untrained"
"""Name of the checkpoint that the probes take for new weights, and of their results' files."""


class RunFailed(RuntimeError):
    """A command of a run failed; the message is the end of its log."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
        name: name of the variant.
        variant: the variant.
        seed: seed of weights, order and views.
        folder: run folder; a run resumes from its contents.
        train: labelled shard set to train on.
        val: labelled shard set that the probes evaluate on.
        linear: flags of the linear probes by name; empty for kNN only.
        flags: the user's flags, which override the variant's.
        threads: threads of torch and of decoding.
        processes: ranks of a MoCo training on this machine.
        images: the training images as files, which the original's loader reads; None where no variant has it.
        compared: whether the linear probes are made of the untrained encoder, too, and the export is compared with
            timm's encoder.
    """

    name: str
    variant: Variant
    seed: int
    folder: Path
    train: Path
    val: Path
    linear: Mapping[str, Flags]
    flags: Sequence[str]
    threads: int
    processes: int
    images: Path | None = None
    compared: bool = False

    def make(self) -> None:
        """Train and probe, skipping commands that have already succeeded; raises RunFailed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # written once, when the run begins: a resumed run may end at another commit, and the tables name the one at
        # which it began
        note = self.folder / "environment.json"
        if not note.exists():
            made_by = environment() | {"torch_threads": self.threads}
            note.write_text(json.dumps(made_by, indent=1) + "\n", encoding="utf-8")
        self._once("train", self._training())
        if self.variant.kind != "moco":
            self._once(
                "knn", ["-m", "fastmoco.knn", *self._encoder(), *self._sets(), "--json", self.folder / "knn.json"]
            )
        for probe, flags in self.linear.items():
            self._classify(probe, flags, self._encoder())
            if self.compared:
                new = ("--checkpoint", UNTRAINED, *self._named(), "--seed", self.seed)
                self._classify(f"{UNTRAINED}-{probe}", flags, new)
        if self.compared:
            exported = self.folder / "exported.json"
            self._once("exported", ["-m", "_learning.exported", self._newest(), self.val, exported, self.threads])

    def _training(self) -> list[Any]:
        where = (
            *("--shards", self.train, "--knn-val", self.val, "--out", self.folder),
            *("--threads", self.threads, "--seed", self.seed),
        )
        flags = [*self.variant.flags, *where, *self.flags]
        if self.variant.kind != "moco":
            return ["-m", "_learning.supervised", self.variant.kind, self.folder, *flags]
        if self.variant.loader == "original":
            return ["-m", "_learning.original", self.images, *flags]
        # --standalone, so that two experiments on a machine do not meet at torchrun's default port
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", self.processes)
        return [*(torchrun if self.processes > 1 else ()), "-m", "fastmoco.train", *flags]

    def _classify(self, name: str, flags: Flags, encoder: Sequence[Any]) -> None:
        where = ("--json", self.folder / f"{name}.json", "--out", self.folder / name)
        self._once(name, ["-m", "fastmoco.linear", *encoder, *self._sets(), *where, *flags])

    def _sets(self) -> tuple[Any, ...]:
        return ("--train", self.train, "--val", self.val, "--threads", self.threads)

    def _encoder(self) -> tuple[Any, ...]:
        """Flags of the probes for the trained encoder; requires the finished training."""
        if self.variant.kind == "moco":
            return ("--checkpoint", self._newest())
        return ("--checkpoint", self.folder / "encoder.pt", *self._named())

    def _named(self) -> tuple[Any, ...]:
        # as the run recorded it: the user's flags override the variant's
        config = self._config()
        return ("--arch", config.arch, "--image-size", config.image_size)

    def _newest(self) -> Path:
        # numbers are padded with zeros, so the largest name is the newest checkpoint
        return max((self.folder / "checkpoints").glob("step-*.pt"))

    def _config(self) -> Config:
        return Config.from_dict(json.loads((self.folder / "config.json").read_text(encoding="utf-8")))

    def _once(self, what: str, arguments: Sequence[Any]) -> None:
        """Run Python with these arguments, unless the same command has succeeded in this folder."""
        command = [str(part) for part in arguments]
        done = self.folder / f"{what}.done.json"
        # compared with the whole command: a run with other flags in the same folder is not taken for this one
        if done.exists() and json.loads(done.read_text(encoding="utf-8"))["command"] == command:
            return
        begun, log = time.perf_counter(), self.folder / "log.txt"
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(
                [sys.executable, *command],
                # runs share the cores: without OMP_NUM_THREADS torch starts a thread per core in each of them
                stdout=file, stderr=subprocess.STDOUT, env=environ() | {"OMP_NUM_THREADS": str(self.threads)},
                check=False,
            ).returncode  # fmt: skip
        if code:
            last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-8:])
            raise RunFailed(f"last lines of {log}:\n{last}")
        seconds = round(time.perf_counter() - begun, 1)
        done.write_text(json.dumps({"command": command, "seconds": seconds}) + "\n", encoding="utf-8")

    def rows(self) -> list[dict[str, Any]]:
        """A row per kNN probe so far; the last one also has the linear probes' results."""
        if not (self.folder / "config.json").exists():
            return []
        found = self._knn()
        if not found:
            return []
        common = {"variant": self.name, "seed": self.seed}
        empty = {f"{probe}_{what}": "" for probe in LINEAR for what in ("top1", "lr", "epochs")}
        rows = [common | row | empty | self._settings() for row in found]
        for probe in LINEAR:
            rows[-1] |= self._linear(probe)
        return [row | self._compared() for row in rows] if self.compared else rows

    def _knn(self) -> list[dict[str, Any]]:
        if self.variant.kind != "moco":
            answer = self.folder / "knn.json"
            if not answer.exists():
                return []
            epoch = 0 if self.variant.kind == "untrained" else self._config().epochs
            top1 = json.loads(answer.read_text(encoding="utf-8"))["knn_top1"]
            return [{"epoch": epoch, "step": "", "loss": "", "knn_top1": round(top1, 3), "spread": ""}]
        metrics = self.folder / "metrics.jsonl"
        found, loss, spreads = [], "", []
        for line in map(json.loads, metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ()):
            # a kNN line has no loss: its row has that of the log line before it
            loss = round(line["loss"], 4) if "loss" in line else loss
            if "spread" in line:
                spreads.append(line["spread"])
            if "knn_top1" in line:
                place = {"epoch": line["epoch"], "step": line["step"], "loss": loss}
                # the lowest since the last probe: a collapse may be over by the next one
                lowest = {"spread": round(min(spreads), 4) if spreads else ""}
                found.append(place | {"knn_top1": round(line["knn_top1"], 3)} | lowest)
                spreads.clear()
        return found

    def _linear(self, probe: str) -> dict[str, Any]:
        """The result of the probe's best learning rate, chosen alike for every encoder; empty before it has ended."""
        answer = self.folder / f"{probe}.json"
        if not answer.exists():
            return {}
        result = json.loads(answer.read_text(encoding="utf-8"))
        best = max(result["results"], key=lambda row: row["linear_top1"])
        return {
            f"{probe}_top1": round(best["linear_top1"], 3), f"{probe}_lr": best["lr"],
            f"{probe}_epochs": result["probe"]["epochs"],
        }  # fmt: skip

    def _compared(self) -> dict[str, Any]:
        """The optimiser, the untrained encoder's linear probes, and the export's features in timm."""
        found: dict[str, Any] = {}
        for probe in self.linear:
            of_untrained = self._linear(f"{UNTRAINED}-{probe}")
            found[f"{UNTRAINED}_{probe}_top1"] = of_untrained.get(f"{UNTRAINED}-{probe}_top1", "")
        answer = self.folder / "exported.json"
        exported = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
        names = ("parameters", "timm_difference", "timm_difference_contiguous", "timm_largest")
        own = {"optimiser": self._config().optimiser}
        return found | own | {name: exported.get(name, "") for name in names}

    def _settings(self) -> dict[str, Any]:
        config = self._config()
        machine = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))
        done = self.folder / "train.done.json"
        values = config.to_dict() | {"negatives": config.negatives}
        return {name: values[name] for name in SETTINGS} | {
            "seconds": json.loads(done.read_text(encoding="utf-8"))["seconds"] if done.exists() else "",
            "cpu": machine["cpu"], "threads": machine["torch_threads"], "torch": machine["packages"]["torch"],
            "commit": machine["commit"], "date": machine["date"],
        }  # fmt: skip
