"""The training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastmoco.config import Config, ConfigError
from fastmoco.devices import to_device
from fastmoco.model.moco import Contrast
from fastmoco.ranks.world import World, restarted, world
from fastmoco.report import neighbours
from fastmoco.runs import checkpoint
from fastmoco.runs.checkpoint import Changed
from fastmoco.runs.errors import NotFinite, Stopped, TrainingError
from fastmoco.runs.folder import Wanted, mark_latest, run_folder
from fastmoco.runs.progress import waiting
from fastmoco.runs.run import Run
from fastmoco.runs.wandb_board import check_installed
from fastmoco.runs.warnings import passed, warn
from fastmoco.trainer.agreement import agree
from fastmoco.trainer.callbacks import Callback, Training, check_callbacks
from fastmoco.trainer.data import Data, check_samples, check_timeout, open_data
from fastmoco.trainer.determinism import deterministic
from fastmoco.trainer.messages import (
    demo_hint,
    line_of,
    logged,
    probed,
    say_what_runs,
    slow_first_step,
    unsound_in_words,
    warn_of_collapse,
    warn_of_no_probe,
    warn_of_rollback,
)
from fastmoco.trainer.monitor import KnnMonitor, NoProbe
from fastmoco.trainer.nonsense import PATIENT_STEPS, Nonsense
from fastmoco.trainer.own_time import OwnTime
from fastmoco.trainer.profiling import Profile
from fastmoco.trainer.resume import check_compatible, compare
from fastmoco.trainer.rollback import Rollback, too_many
from fastmoco.trainer.soundness import Unsound, fault, looked_at, where
from fastmoco.trainer.start import begin_from
from fastmoco.trainer.step import TrainStep
from fastmoco.trainer.window import Window
from pipelines import TwoViewPipeline, TwoViews, ViewSpec
from pipelines.pictures import sheet
from pipelines.quarantine import rewind

log = logging.getLogger(__name__)
OnStep = Callable[[TrainStep, TwoViews, Contrast, int], None]


def train(config: Config, on_step: OnStep | None = None, callbacks: Sequence[Callback] = ()) -> Path:
    """Train with the settings of `config`, resuming an earlier run of the same command.

    Under torchrun this process is one rank of many; without it, it is the whole run.

    Args:
        config: the settings.
        on_step: called after each step with the step's objects, its batch, its result, and its number.
        callbacks: called on rank 0; see `trainer.callbacks`. A run that one of them stops ends without an error.

    Returns:
        The run folder.

    Raises:
        ConfigError, shards.ShardSetError, checkpoint.CheckpointError: settings, data or checkpoints do not fit.
        TrainingError: the state is not finite, or ranks no longer hold the same model.
        Stopped: after a signal (`shards.interrupts.SIGNALS`), once the state is saved.
    """
    check_installed(config.wandb)
    check_timeout(config)
    with (
        deterministic(config.deterministic),
        world(timedelta(minutes=config.rank_timeout)) as here,
        open_data(config) as data,
    ):
        check_samples(data, config)
        config.per_rank_batch(here.size)
        with run_folder(config.out, here, wanted(config, data), config.notify) as folder:
            Trainer(config, here, data, folder, on_step, callbacks).run()
            if here.size > 1:
                dist.barrier()  # no rank returns before rank 0 has written the last checkpoint
            return folder


def wanted(config: Config, data: Data) -> Wanted:
    """The run that `config` asks for, among earlier runs."""
    return Wanted(
        f"{config.recipe}-{config.arch}",
        config.total_steps(data.samples // config.batch_size),
        lambda folder, recorded: compare(folder, recorded, config, data.samples, data.digest),
        "--resume none",
        # a restart continues the run that its first start began
        earlier=config.resume != "none" or restarted(),
    )


def view_spec(config: Config) -> ViewSpec:
    """The augmentation that `config` names."""
    make = ViewSpec.moco_v2 if config.augmentation == "v2" else ViewSpec.moco_v1
    return make(config.image_size)


class Trainer(Run):
    """One pretraining run on one rank."""

    layout = checkpoint.FORMAT
    evaluation = "kNN probe"

    def __init__(
        self,
        config: Config,
        here: World,
        data: Data,
        folder: Path,
        on_step: OnStep | None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        check_callbacks(callbacks)
        config.milestone_fractions()
        steps_per_epoch = data.samples // config.batch_size
        total_steps = config.total_steps(steps_per_epoch)
        super().__init__(
            here, folder, steps_per_epoch, total_steps, config, batch_size=config.batch_size,
            evaluate_every=config.knn_every * steps_per_epoch,
        )  # fmt: skip
        self.anew = "--resume none" if config.out is None else "another --out"
        self.config, self.data, self.on_step = config, data, on_step
        self.monitor = KnnMonitor(config, here) if config.knn_every else None
        with waiting("building the model" + ", and capturing CUDA graphs" * config.cuda_graphs):
            self.train_step = TrainStep(config, here.device, total_steps, data.samples)
        self.window = Window(here.device)
        # with synchronised BatchNorm the ranks wait for each other within the pass
        alone = here.size == 1 or config.batch_norm == "sync"
        self.own = None if alone else OwnTime(self.train_step.model.query_encoder, here.device)
        self.rollbacks: tuple[Rollback, ...] = ()
        # an image's entry in the bank is random until its second epoch
        patient_steps = max(PATIENT_STEPS, 2 * steps_per_epoch if config.mechanism == "memory-bank" else 0)
        self.nonsense = Nonsense(math.log(config.negatives + 1), patient_steps)
        # the figures of a step are read once the next one is launched, so that a GPU has work while the host waits;
        # a line for each step is for watching, and comes at once
        self.defers_logs = here.device.type == "cuda" and config.log_every > 1
        self.unlogged: tuple[int, Callable[[], dict[str, float]]] | None = None
        self.callbacks = tuple(callbacks) if here.is_main else ()
        backbone = self.train_step.model.encoder.backbone
        self.training = Training(config, self.folder, total_steps, steps_per_epoch, backbone, self.stop_early)

    def run(self) -> None:
        """Train to the end."""
        self._begin()
        if self.at_end and not self.owed:
            return
        config = self.config
        with waiting("building the pipeline"):
            opening = self._pipeline()
        with opening as pipeline, self.opened(config.to_dict()), ExitStack() as first_step:
            if self.here.is_main:
                mark_latest(self.folder)
                dtype, samples = self.train_step.dtype, self.data.samples
                say_what_runs(config, self.here, dtype, pipeline, samples, self.total_steps)
            if self.monitor and self.step == 0:
                self._probe()
            elif self.owed:
                self._probe()
                self.save_once_more()
            if config.on_nan == "rollback" and not checkpoint.found(self.checkpoints):
                self.start_saving()  # the initial weights, to go back to from the first step on
            first_step.enter_context(waiting(slow_first_step(config, self.here)))
            try:
                self._train(pipeline, first_step)
            except Stopped as stopped:
                self._tell_of_end()
                if stopped.stopped_by:
                    raise
                if self.here.is_main:
                    log.info("a callback ended the run early: %s", stopped)
            else:
                self._tell_of_end()

    def _train(self, pipeline: TwoViewPipeline, first_step: ExitStack) -> None:
        """Make the steps that are left; `first_step` is closed after the first of them."""
        with Profile(self.config.profile * self.here.is_main, self.folder, self.here.device) as profile:
            for batch in self.batches(pipeline.epoch):
                self._train_on(batch)
                first_step.close()
                try:
                    self._after_step()
                except Unsound as found:
                    self._go_back(found)
                if profile.after_step():
                    self.window.forget_time()

    def _after_step(self) -> None:
        config = self.config
        # before a checkpoint is written: one of ranks that differ would not be sound
        if self.due(config.check_every):
            agree(self, self.train_step.model.shared())
        self._finish_log()  # of the step before
        # the first step too, so that a wrong setting shows at once
        if self.step == 1 or self.due(config.log_every):
            self._start_log()
        if self.monitor and self.due(config.knn_every * self.steps_per_epoch):
            self._probe()
        # a checkpoint has no unlogged figures
        if self.unlogged is None:
            self.save_if_due(config.checkpoint_every)

    def _go_back(self, found: Unsound) -> None:
        """Continue from the last sound checkpoint with the batches that come next, or raise the error.

        All ranks call it after the same step.
        """
        self.end_saving()  # a checkpoint that is being written may be the last sound one
        sound, config = self.last_sound(), self.config
        forbidden = too_many(self.rollbacks, self.step, config.max_rollbacks)
        if config.on_nan == "stop" or forbidden or sound is None:
            raise TrainingError(unsound_in_words(found, sound, config, forbidden))
        path, to = sound
        rollbacks = *self.rollbacks, Rollback(self.step, to, self.position, found.cause)
        with waiting(f"going back to {path}"):
            self.load_again(path)
        self.go_back(to, {"rollback": rollbacks[-1].plain()})
        self.rollbacks = rollbacks
        if self.here.is_main:
            warn_of_rollback(rollbacks, found, path, config)
        # with the batches that are skipped: a restart from here must not train on them again
        self.gather_state()
        self.start_saving()

    def _begin(self) -> None:
        """Continue from a checkpoint, or start from the weights of --init."""
        config = self.config
        if config.resume == "none" and not restarted() and checkpoint.found(self.checkpoints):
            raise ConfigError(f"--resume none, but {self.checkpoints} holds checkpoints; choose another --out")
        if config.resume == "none" and not restarted():
            self.refuses_copy = "--resume none"
        # the run's own checkpoints take precedence over the one that it started from
        start = None if config.resume in ("auto", "none") else Path(config.resume)
        if not self.resume(start) and config.init is not None:
            begin_from(self.train_step.model, config.init, config, self.here)

    def check_resumable(self, path: Path, state: dict[str, Any]) -> Changed:
        """See `Run.check_resumable`."""
        return check_compatible(path, state, self.config, self.data.digest)

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Run.load_state`."""
        self.train_step.load_state(state)
        progress = state["progress"]
        self.owed = progress.get("owed", False) and self.monitor is not None
        self.window = Window(self.here.device, progress["window"])
        # checkpoints of earlier versions have neither
        self.skipped = progress.get("position", progress["step"]) - progress["step"]
        self.rollbacks = tuple(Rollback(**each) for each in progress.get("rollbacks", ()))

    def estimate(self) -> str:
        """See `Run.estimate`."""
        return super().estimate() + demo_hint(self.config, self.here, self.pace.left() or 0.0)

    def state(self) -> dict[str, Any]:
        """See `Run.state`; `runs.checkpoint` describes the layout."""
        progress = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            "position": self.position,
            "owed": self.owed,
            "samples": self.step * self.config.batch_size,
            "window": self.window.state(),
            "rollbacks": [rollback.plain() for rollback in self.rollbacks],
        }
        return {
            "config": self.config.to_dict(),
            "data": {"digest": self.data.digest, "samples": self.data.samples},
            "progress": progress,
            **self.train_step.state(),
        }

    def own_time(self) -> tuple[float, int]:
        """See `Run.own_time`."""
        return self.own.take() if self.own else super().own_time()

    def gather_state(self) -> None:
        """See `Run.gather_state`."""
        self.window.gather()

    def settle(self) -> None:
        """See `Run.settle`."""
        try:
            self._finish_log()
        except Unsound as found:
            self._go_back(found)

    def _pipeline(self) -> TwoViewPipeline:
        config, quarantine = self.config, self.folder / "quarantine.jsonl"
        if self.here.is_main:  # before the other ranks append to it, which is after the exchange of `opened`
            first = divmod(self.position, self.steps_per_epoch)
            self.disk.write(quarantine.name, lambda: rewind(quarantine, *first))
        return self.data.build(
            view_spec(config),
            config,
            global_batch=config.batch_size,
            rank=self.here.rank,
            world_size=self.here.size,
            seed=config.seed,
            device=self.here.device,
            dtype=self.train_step.dtype or torch.float32,
            quarantine=quarantine,
        )

    def _train_on(self, batch: TwoViews) -> None:
        picture = self.folder / "views.png"
        if self.here.is_main and not picture.exists():
            spec = view_spec(self.config)
            if self.disk.write("views.png", lambda: sheet(batch, spec, picture)):
                self.show("views", picture)
        contrast = self.train_step(batch, self.step)
        self.window.add(contrast, self.waited)
        self.advance()
        if self.on_step:
            with self.holding_errors():
                self.on_step(self.train_step, batch, contrast, self.step - 1)
        self._tell("on_step")

    def refused(self, error: NotFinite) -> None:
        """See `Run.refused`: with the next figures all ranks find it."""
        warn("not_saved", str(error))

    def saved(self, path: Path) -> None:
        """See `Run.saved`."""
        self._tell("on_checkpoint", path)

    def _tell(self, hook: str, *arguments: Any) -> None:
        """Call a method of all callbacks; after an exception they are called no more, and all ranks end."""
        self.training.step = self.step
        for callback in self.callbacks:
            method = getattr(callback, hook, None)  # any object with one of them is a callback
            if method is not None and self._failure is None:
                with self.holding_errors():
                    method(self.training, *arguments)

    def _tell_of_end(self) -> None:
        self._tell("on_end")
        if self._failure is not None:  # the ranks agree no more
            raise self._failure

    def _start_log(self) -> None:
        fill = self.train_step.model.dictionary.fill()
        if fill.device != self.here.device:
            fill = to_device(fill, self.here.device)
        config = self.config
        arriving = self.window.start_reading(
            config.batch_size, fill, self.start_sum_over_ranks, looked_at(self.train_step)
        )
        self.unlogged = self.step, arriving
        probes = bool(self.monitor) and self.due(config.knn_every * self.steps_per_epoch)
        # records keep their order, and a checkpoint has no unlogged figures
        if not self.defers_logs or probes or self.at_end or self.saves_at_step(config.checkpoint_every):
            self._finish_log()

    def _finish_log(self) -> None:
        if self.unlogged is None:
            return
        step, arriving = self.unlogged
        self.unlogged, figures = None, arriving()
        # the means over the ranks are the same on all of them, so either all stop here or none
        scaled = self.train_step.scaler.is_enabled()
        cause = fault(figures, scaled)
        if cause is not None:
            raise Unsound(step, cause + where(self.train_step, self.here))
        if not self.here.is_main:
            return
        variance = figures["variance"]
        figures = logged(figures, self.train_step.lr(step - 1), scaled)
        self.record(figures, f"epoch {step / self.steps_per_epoch:.2f}  {line_of(figures)}", step)
        warn_of_collapse(figures, step)
        self.nonsense.look({**figures, "variance": variance}, step)
        self._tell("on_log", {"step": step, "epoch": step / self.steps_per_epoch, **figures})

    def _probe(self) -> None:
        assert self.monitor is not None
        try:
            with self.evaluating():
                accuracy, rows = self.monitor(self.train_step.model, neighbours=self.at_end)
        except NoProbe as error:
            accuracy, rows, self.owed = None, [], False
            if self.here.is_main:
                warn_of_no_probe(str(error), self.step, self.folder)
        else:
            passed("probe")
        self.window.forget_time()
        figures, line = probed(accuracy)
        self.record(figures, f"epoch {self.epochs_done:.2f}  {line}")
        if rows and self.disk.write("neighbours.png", lambda: neighbours.save(self.folder, self.step, rows)):
            self.show("neighbours", self.folder / "neighbours.png")
        self._tell("on_log", {"step": self.step, "epoch": self.epochs_done, "knn_top1": figures["knn_top1"]})
