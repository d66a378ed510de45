"""The training loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from fastmoco.architectures import in_file_name
from fastmoco.checkpoints import checkpoint
from fastmoco.config import Config
from fastmoco.devices import to_device
from fastmoco.ranks.images import agree_on_images
from fastmoco.ranks.patience import check_timeout
from fastmoco.ranks.world import restarted, world
from fastmoco.report import neighbours
from fastmoco.runs.errors import Stopped, TrainingError
from fastmoco.runs.folder import Wanted, mark_latest, run_folder
from fastmoco.runs.progress import waiting
from fastmoco.runs.wandb_board import check_installed
from fastmoco.runs.warnings import passed
from fastmoco.trainer.agreement import agree
from fastmoco.trainer.callbacks import Callback
from fastmoco.trainer.data import Data, check_samples, open_data, places_of
from fastmoco.trainer.determinism import deterministic
from fastmoco.trainer.messages import (
    line_of,
    logged,
    probed,
    say_what_has_grown,
    say_what_runs,
    slow_first_step,
    unsound_in_words,
    warn_of_collapse,
    warn_of_no_probe,
    warn_of_rollback,
)
from fastmoco.trainer.monitor import NoProbe
from fastmoco.trainer.pretraining import OnStep, Pretraining
from fastmoco.trainer.profiling import Profile
from fastmoco.trainer.resume import Grown, compare
from fastmoco.trainer.rollback import Rollback, too_many
from fastmoco.trainer.soundness import Unsound, fault, looked_at, where
from pipelines import TwoViewPipeline, TwoViews
from pipelines.pictures import sheet

log = logging.getLogger(__name__)


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
        ImagesDiffer: ranks opened different images.
        TrainingError: the state is not finite, or ranks no longer hold the same model.
        Stopped: after a signal (`shards.interrupts.SIGNALS`), once the state is saved.
    """
    check_installed(config.wandb)
    check_timeout(config.rank_timeout, *places_of(config))
    with (
        deterministic(config.deterministic),
        world(timedelta(minutes=config.rank_timeout)) as here,
        open_data(config) as data,
    ):
        agree_on_images(here, *data.opened)
        check_samples(data, config)
        config.per_rank_batch(here.size)
        with run_folder(config.out, here, wanted(config, data), config.notify) as folder:
            digests = _run(Trainer(config, here, data, folder, on_step, callbacks))
            if digests is not None:
                with open_data(config, digests) as before:
                    if here.is_main:
                        say_what_has_grown(data, before, folder)
                    Trainer(config, here, before, folder, on_step, callbacks).run()
            if here.size > 1:
                dist.barrier()  # no rank returns before rank 0 has written the last checkpoint
            return folder


def _run(trainer: Trainer) -> tuple[str, ...] | None:
    """Train to the end; or return the digests of the sets with which the run began, where they have grown since."""
    try:
        trainer.run()
    except Grown as grown:
        trainer.end_saving()
        return grown.digests
    return None


def wanted(config: Config, data: Data) -> Wanted:
    """The run that `config` asks for, among earlier runs."""
    return Wanted(
        f"{config.recipe}-{in_file_name(config.arch)}",
        config.total_steps(data.samples // config.batch_size),
        lambda folder, recorded: compare(folder, recorded, config, data.images, data.digest, data.had, data.scaling),
        "--resume none",
        # a restart continues the run that its first start began
        earlier=config.resume != "none" or restarted(),
    )


class Trainer(Pretraining):
    """One pretraining run on one rank."""

    def run(self) -> None:
        """Train to the end, or until a callback ends the run early."""
        self.begin()
        self.data.check()
        if self.at_end and not self.owed:
            return
        with waiting("building the pipeline"):
            opening = self.pipeline()
        try:
            with opening as pipeline, self.opened(self.config.to_dict()):
                self._train(pipeline)
        except Stopped as stopped:  # status.json says so by now
            if stopped.stopped_by:
                raise
            if self.here.is_main:
                log.info("a callback ended the run early: %s", stopped)

    def _train(self, pipeline: TwoViewPipeline) -> None:
        """Make the steps that are left, and the probes before them."""
        config = self.config
        if self.here.is_main:
            mark_latest(self.folder)
            say_what_runs(
                config, self.here, self.train_step.dtype, pipeline, self.data, self.total_steps,
                self.train_step.model.shuffles,
            )  # fmt: skip
        try:
            if self.monitor and self.step == 0:
                self._probe()
            elif self.owed:
                self._probe()
                self.save_once_more()
            if config.on_nan == "rollback" and not checkpoint.found(self.checkpoints):
                self.start_saving()  # the initial weights, to go back to from the first step on
            self._make_steps(pipeline)
        except Stopped:
            self.tell_of_end()
            raise
        self.tell_of_end()

    def _make_steps(self, pipeline: TwoViewPipeline) -> None:
        profile = Profile(self.config.profile * self.here.is_main, self.folder, self.here.device)
        with profile, ExitStack() as first_step:
            first_step.enter_context(waiting(slow_first_step(self.config, self.here)))
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
        self.await_saving()  # a checkpoint that is being written may be the last sound one
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

    def settle(self) -> None:
        """See `Run.settle`."""
        try:
            self._finish_log()
        except Unsound as found:
            self._go_back(found)

    def _train_on(self, batch: TwoViews) -> None:
        picture = self.folder / "views.png"
        if self.here.is_main and not picture.exists():
            pair = self.config.view_pair
            if self.disk.write("views.png", lambda: sheet(batch, pair, picture)):
                self.show("views", picture)
        contrast = self.train_step(batch, self.step)
        self.window.add(contrast, self.waited)
        self.advance()
        if self.on_step:
            with self.holding_errors():
                self.on_step(self.train_step, batch, contrast, self.step - 1)
        self.tell("on_step")

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
        self.tell("on_log", {"step": step, "epoch": step / self.steps_per_epoch, **figures})

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
        self.tell("on_log", {"step": self.step, "epoch": self.epochs_done, "knn_top1": figures["knn_top1"]})
