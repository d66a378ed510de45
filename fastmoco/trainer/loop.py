"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastmoco.config import Config, ConfigError
from fastmoco.distributed import World, world
from fastmoco.model.moco import Contrast
from fastmoco.runs import checkpoint
from fastmoco.runs.errors import Stopped, TrainingError
from fastmoco.runs.log import RunLog
from fastmoco.runs.signals import on_stop_signal
from fastmoco.trainer.agreement import check_agreement
from fastmoco.trainer.data import Data, check_samples, open_data
from fastmoco.trainer.messages import line_of, say_what_runs, warn_of_collapse
from fastmoco.trainer.monitor import KnnMonitor
from fastmoco.trainer.step import TrainStep
from fastmoco.trainer.window import Window
from pipelines import TwoViewPipeline, TwoViews, ViewSpec
from pipelines.sheet import sheet

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 600
OnStep = Callable[[TrainStep, TwoViews, Contrast, int], None]


def train(config: Config, on_step: OnStep | None = None) -> Path:
    """Train as `config` says, continuing where an earlier run of the same command was cut off.

    Under torchrun this process is one rank of many; alone it is the whole run.

    Args:
        config: the settings.
        on_step: called after each step with the step's objects, its batch, its result, and its number.

    Returns:
        The run folder.

    Raises:
        ConfigError, shards.ShardSetError, checkpoint.CheckpointError: for what the user can mend.
        TrainingError: where the loss is not finite, or ranks no longer hold the same model.
        Stopped: after SIGTERM or SIGINT, once the state is safe.
    """
    with world() as here, open_data(config) as data:
        Trainer(config, here, data, on_step).run()
    return config.run


def view_spec(config: Config) -> ViewSpec:
    """The numbers of the augmentation that `config` names."""
    make = ViewSpec.moco_v2 if config.augmentation == "v2" else ViewSpec.moco_v1
    return make(config.image_size)


class Trainer:
    """One run on one rank."""

    def __init__(self, config: Config, here: World, data: Data, on_step: OnStep | None) -> None:
        self.config, self.here, self.data, self.on_step = config, here, data, on_step
        config.per_rank_batch(here.size)
        check_samples(data, config)
        self.steps_per_epoch = data.samples // config.batch_size
        self.total_steps = config.total_steps(self.steps_per_epoch)
        self.monitor = KnnMonitor(config, here) if config.knn_every else None
        self.train_step = TrainStep(config, here.device, self.total_steps, data.samples)
        self.step = 0
        self.window = Window(here.device)
        self.stop_asked = self.stop = False
        self.saved_at = time.monotonic()
        self.warned_of_collapse = False

    @property
    def epochs_done(self) -> float:
        """Epochs that the steps so far make."""
        return self.step / self.steps_per_epoch

    def run(self) -> None:
        """Train to the end."""
        self._resume()
        if self.step >= self.total_steps:
            log.info("%s is finished: %d of %d steps are done", self.config.run, self.step, self.total_steps)
            return
        with self._pipeline() as pipeline, self._records() as records, on_stop_signal(self._ask_to_stop):
            if records:
                dtype, samples = self.train_step.dtype, self.data.samples
                say_what_runs(self.config, self.here, dtype, pipeline, samples, self.total_steps)
            if self.monitor and self.step == 0:
                self._probe(records)
            for batch, waited in self._batches(pipeline, records):
                self._advance(batch, waited, records)
                if self.stop:
                    self._save()
                    raise Stopped(f"stopped after step {self.step}; the same command continues from there")
            self._save()

    def _ask_to_stop(self) -> None:
        self.stop_asked = True
        self.stop = self.here.size == 1  # several ranks agree on it at the next log line

    def _resume(self) -> None:
        config = self.config
        folder = config.run / "checkpoints"
        if config.resume == "none":
            if checkpoint.found(folder):
                raise ConfigError(f"--resume none, but {folder} holds checkpoints; choose another --out")
            return
        newest = checkpoint.newest(folder)  # of this run, also where it began from another run's checkpoint
        if newest is None and config.resume != "auto":
            newest = Path(config.resume), checkpoint.load(Path(config.resume))
        if newest is None:
            if config.init is not None:
                self.train_step.model.load_torchvision(config.init)
            return
        path, state = newest
        checkpoint.check_compatible(path, state, config, self.data.digest)
        self.train_step.load_state(state)
        self.step = state["progress"]["step"]
        self.window = Window(self.here.device, state["progress"]["window"])
        if self.here.is_main:
            log.info("continuing from %s: %d of %d steps are done", path, self.step, self.total_steps)

    def _save(self) -> None:
        if not self.here.is_main:
            return
        epoch, _ = divmod(self.step, self.steps_per_epoch)
        progress = {"epoch": epoch, "step": self.step, "samples": self.step * self.config.batch_size}
        state = {
            "config": self.config.to_dict(),
            "data": {"digest": self.data.digest, "samples": self.data.samples},
            "progress": progress | {"window": self.window.state()},
            **self.train_step.state(),
        }
        path = checkpoint.save(self.config.run / "checkpoints", state, self.config.keep_checkpoints)
        self.saved_at = time.monotonic()
        log.info("wrote %s", path)

    def _pipeline(self) -> TwoViewPipeline:
        config = self.config
        return self.data.build(
            view_spec(config),
            config,
            global_batch=config.batch_size,
            rank=self.here.rank,
            world_size=self.here.size,
            seed=config.seed,
            device=self.here.device,
            dtype=self.train_step.dtype or torch.float32,
            quarantine=config.run / "quarantine.jsonl",
        )

    @contextmanager
    def _records(self) -> Iterator[RunLog | None]:
        if not self.here.is_main:
            yield None
            return
        records = RunLog(self.config.run, self.config.to_dict(), self.step, self.total_steps)
        try:
            yield records
        finally:
            records.close()

    def _batches(self, pipeline: TwoViewPipeline, records: RunLog | None) -> Iterator[tuple[TwoViews, float]]:
        picture = self.config.run / "views.png"
        while self.step < self.total_steps:
            epoch, start = divmod(self.step, self.steps_per_epoch)
            batches = pipeline.epoch(epoch, start)
            for _ in range(min(self.steps_per_epoch - start, self.total_steps - self.step)):
                before = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - before
                if records and not picture.exists():
                    sheet(batch, view_spec(self.config), picture)
                yield batch, waited

    def _advance(self, batch: TwoViews, waited: float, records: RunLog | None) -> None:
        contrast = self.train_step(batch, self.step)
        self.window.add(contrast, waited)
        self.step += 1
        if self.on_step:
            self.on_step(self.train_step, batch, contrast, self.step - 1)
        if records:
            records.advance(self.step)
        at_end = self.step == self.total_steps
        every = self.config.check_every
        if every and (at_end or self.step % every == 0):
            check_agreement(self.train_step.model.shared(), self.step, every)
        if self.step % self.config.log_every == 0 or self.step == 1 or at_end:
            self._log(records)
        if self.monitor and (self.step % (self.config.knn_every * self.steps_per_epoch) == 0 or at_end):
            self._probe(records)
        if not at_end and self._checkpoint_is_due():
            self._save()

    def _checkpoint_is_due(self) -> bool:
        if self.config.checkpoint_every:
            return self.step % self.config.checkpoint_every == 0
        return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def _log(self, records: RunLog | None) -> None:
        figures, self.stop = self.window.read(self.config.batch_size, self.stop_asked)
        if not math.isfinite(figures["loss"]):
            raise TrainingError(
                f"the loss is {figures['loss']} at step {self.step}; the last checkpoint is sound: "
                "continue from it with a lower --lr, or with --precision bf16 or fp32"
            )
        if records is None:
            return
        record = {
            "step": self.step,
            "epoch": round(self.epochs_done, 4),
            "lr": self.train_step.lr(self.step - 1),
            "queue_fill": self.train_step.model.dictionary.fill().item(),
            **figures,
        }
        records.write(record, line_of(record))
        self.warned_of_collapse = self.warned_of_collapse or warn_of_collapse(record)

    def _probe(self, records: RunLog | None) -> None:
        assert self.monitor is not None
        top1 = self.monitor(self.train_step.model)
        self.window.forget_time()
        if records:
            record = {"step": self.step, "epoch": round(self.epochs_done, 4), "knn_top1": top1}
            records.write(record, f"epoch {self.epochs_done:.2f}  kNN top-1 {top1:.2f} %")
