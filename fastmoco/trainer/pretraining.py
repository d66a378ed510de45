"""A pretraining run of one rank: its parts, and what a checkpoint holds of them. `trainer.loop` trains it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import Changed
from fastmoco.config import Config, ConfigError
from fastmoco.model.moco import Contrast
from fastmoco.probes.encoders import digest_of
from fastmoco.ranks.encoders import agree_on_encoder
from fastmoco.ranks.world import World, restarted
from fastmoco.runs.errors import NotFinite
from fastmoco.runs.progress import waiting
from fastmoco.runs.run import Run
from fastmoco.runs.warnings import warn
from fastmoco.scalings import bits_of, common
from fastmoco.trainer.callbacks import Callback, Training, check_callbacks
from fastmoco.trainer.data import Data
from fastmoco.trainer.messages import demo_hint
from fastmoco.trainer.monitor import KnnMonitor
from fastmoco.trainer.nonsense import PATIENT_STEPS, Nonsense
from fastmoco.trainer.own_time import OwnTime
from fastmoco.trainer.resume import check_compatible
from fastmoco.trainer.rollback import Rollback
from fastmoco.trainer.schedule import pixels, view_sizes
from fastmoco.trainer.start import begin_from
from fastmoco.trainer.step import TrainStep
from fastmoco.trainer.window import Window
from fastmoco.views import pair_of
from pipelines import TwoViewPipeline, TwoViews
from pipelines.progressive import ProgressivePipeline
from pipelines.quarantine import rewind

log = logging.getLogger(__name__)

OnStep = Callable[[TrainStep, TwoViews, Contrast, int], None]


class Pretraining(Run):
    """What a pretraining run is made of on one rank."""

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
            self.train_step = TrainStep(config, here.device, total_steps, data.images)
        self.window = Window(here.device)
        # with synchronised BatchNorm the ranks wait for each other within the pass
        alone = here.size == 1 or config.batch_norm == "sync"
        self.own = None if alone else OwnTime(self.train_step.model.query_encoder, here.device)
        self.rollbacks: tuple[Rollback, ...] = ()
        # an image's entry in the bank is random until its second epoch
        patient_steps = max(PATIENT_STEPS, 2 * steps_per_epoch if config.mechanism == "memory-bank" else 0)
        self.nonsense = Nonsense(config.chance, config.loss_scale, patient_steps)
        # the figures of a step are read once the next one is launched, so that a GPU has work while the host waits;
        # a line for each step is for watching, and comes at once
        self.defers_logs = here.device.type == "cuda" and config.log_every > 1
        self.unlogged: tuple[int, Callable[[], dict[str, float]]] | None = None
        self.callbacks = tuple(callbacks) if here.is_main else ()
        backbone = self.train_step.model.encoder.backbone
        backbone.image_bits = bits_of(data.scaling)
        backbone.image_scaling = common(data.scaling)  # so that the kNN probe finds what `fastmoco knn` will
        self.training = Training(config, self.folder, total_steps, steps_per_epoch, backbone, self.stop_early)

    def begin(self) -> None:
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
            agree_on_encoder(self.here, config.init, digest_of(self.train_step.model.encoder.backbone))

    def check_resumable(self, path: Path, state: dict[str, Any]) -> Changed:
        """See `Run.check_resumable`."""
        return check_compatible(path, state, self.config, self.data.digest, self.data.had, self.data.scaling)

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Run.load_state`."""
        self.train_step.load_state(state)
        progress = state["progress"]
        self.owed = progress.get("owed", False) and self.monitor is not None
        self.window = Window(self.here.device, progress["window"])
        # checkpoints of earlier versions have neither
        self.skipped = progress.get("position", progress["step"]) - progress["step"]
        self.rollbacks = tuple(Rollback(**each) for each in progress.get("rollbacks", ()))

    def state(self) -> dict[str, Any]:
        """See `Run.state`; `checkpoints.checkpoint` describes the layout."""
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
            "data": {"digest": self.data.digest, "samples": self.data.images, **self._digests()},
            "progress": progress,
            **self.train_step.state(),
        }

    def _digests(self) -> dict[str, Any]:
        opened = self.data.opened
        scaling = {} if self.data.scaling is None else {"scaling": self.data.scaling}
        return ({"sets": [each.digest for each in opened]} if len(opened) > 1 else {}) | scaling

    def estimate(self) -> str:
        """See `Run.estimate`."""
        growing = self.step < view_sizes(self.config, self.total_steps)[-1][0]
        slower = "; steps get slower as views grow, which the time left includes" if growing else ""
        return super().estimate() + slower + demo_hint(self.config, self.here, self.pace.left() or 0.0)

    def work(self) -> Callable[[int], float] | None:
        """See `Run.work`."""
        return pixels(self.config, self.total_steps)

    def own_time(self) -> tuple[float, int]:
        """See `Run.own_time`."""
        return self.own.take() if self.own else super().own_time()

    def gather_state(self) -> None:
        """See `Run.gather_state`."""
        self.window.gather()

    def pipeline(self) -> TwoViewPipeline:
        """The pipeline of this rank's views, from the place that the run has come to."""
        quarantine = self.folder / "quarantine.jsonl"
        if self.here.is_main:  # before the other ranks append to it, which is after the exchange of `opened`
            first = divmod(self.position, self.steps_per_epoch)
            self.disk.write(quarantine.name, lambda: rewind(quarantine, *first))
        sizes = view_sizes(self.config, self.total_steps)
        if not self.config.early_sizes:
            return self._pipeline_of(sizes[0][1])
        return ProgressivePipeline(self._pipeline_of, sizes, self.position)

    def _pipeline_of(self, image_size: int) -> TwoViewPipeline:
        """The pipeline of views of one size."""
        config = self.config
        if config.early_sizes and self.here.is_main:
            log.info("views of %d pixels from step %d on", image_size, self.step + 1)
        return self.data.build(
            pair_of(config, image_size),
            config,
            global_batch=config.batch_size,
            rank=self.here.rank,
            world_size=self.here.size,
            seed=config.seed,
            device=self.here.device,
            dtype=self.train_step.dtype or torch.float32,
            quarantine=self.folder / "quarantine.jsonl",
        )

    def refused(self, error: NotFinite) -> None:
        """See `Run.refused`: with the next figures all ranks find it."""
        warn("not_saved", str(error))

    def saved(self, path: Path) -> None:
        """See `Run.saved`."""
        self.tell("on_checkpoint", path)

    def tell(self, hook: str, *arguments: Any) -> None:
        """Call a method of all callbacks; after an exception they are called no more, and all ranks end."""
        self.training.step = self.step
        for callback in self.callbacks:
            method = getattr(callback, hook, None)  # any object with one of them is a callback
            if method is not None and self._failure is None:
                with self.holding_errors():
                    method(self.training, *arguments)

    def tell_of_end(self) -> None:
        """Call `on_end` of all callbacks; its exception is raised at once."""
        self.tell("on_end")
        if self._failure is not None:  # the ranks agree no more
            raise self._failure
