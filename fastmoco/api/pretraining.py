"""Pretraining from Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmoco import recipes
from fastmoco.api.encoders import LoadedEncoder, load_encoder
from fastmoco.api.sources import as_set, sources_of
from fastmoco.architectures import by_timm
from fastmoco.changes import changed
from fastmoco.checkpoints import checkpoint
from fastmoco.config import Config, ConfigError
from fastmoco.model.following import check_early_sizes, following_encoder, own_size
from fastmoco.report.reading import read_metrics
from fastmoco.results import check_run
from fastmoco.runs.log import set_up_logging
from fastmoco.trainer.callbacks import Callback, check_callbacks
from fastmoco.trainer.loop import train
from shards.command import reported


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A run folder. Where the path of a run is expected, it may be given itself.

    Attributes:
        folder: The folder; docs/training.md describes its files.
    """

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint; raises a UserError if there is none."""
        return checkpoint.newest_of(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, in order: figures of the training by name, and the kNN accuracies."""
        return read_metrics(self.folder / "metrics.jsonl")

    def encoder(self) -> LoadedEncoder:
        """The encoder of the newest checkpoint and the transform of its images; see `fastmoco.load_encoder`."""
        return load_encoder(self.folder)


def pretrain(
    source: Any,
    *,
    recipe: str | Config = "moco-v2",
    out: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    packing: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Pretrain an encoder; continues where an interrupted call with the same arguments stopped.

    It runs in a script, without an `if __name__ == "__main__"` guard; in a notebook; and on each rank under torchrun.
    It logs as the command does, unless the program has set up logging itself.

    Args:
        source: The images: folder or URL of a shard set; a folder of images, a file or folder of files that hold them
            (tar, zip, Parquet, Arrow), or a torch Dataset or other iterable that can be read more than once, which is
            packed first, into the cache. Or several of these, as a list, of which the setting `weights` has one for
            each; a list without weights is one of sources if all are folders or URLs.
        recipe: Name of a recipe, or the settings themselves.
        out: The run folder; None for the settings' own.
        callbacks: Objects that are called during the training; see `fastmoco.Callback`.
        packing: Options of packing, as of `shards.pack`, such as {"resize": 256}; not for a shard set.
        settings: Further settings by name, the fields of `fastmoco.Config`, such as epochs=100.

    Returns:
        The run.

    Raises:
        UserError: Settings, images or the run folder do not fit, or the training cannot continue; the message says why
            and what to do. After SIGINT, SIGTERM, SIGHUP or SIGUSR1 it is `fastmoco.runs.errors.Stopped`: the state is
            saved.
    """
    for name in ("shards", "stream"):
        if name in settings:
            raise ConfigError(f"{name}={settings[name]!r}: the images are the first argument of pretrain")
    if out is not None:
        settings["out"] = out
    given = recipe if isinstance(recipe, Config) else recipes.recipe(recipe)
    sources = sources_of(source, several=bool(settings.get("weights", given.weights)))
    # names for the sources until they are packed, as there has to be a weight for each
    follows = not isinstance(recipe, Config) or "arch" in settings
    arch, size = settings.get("arch", given.arch), {}  # by which --early-sizes are checked
    if follows and isinstance(arch, str) and by_timm(arch):
        size = {"image_size": own_size(arch, settings, given.image_size)}
    config = changed(
        given, {**size, **settings, "shards": [f"source {number}" for number in range(1, len(sources) + 1)]}
    )
    if follows:
        config = following_encoder(config, settings)
    else:
        check_early_sizes(config)
    check_callbacks(callbacks)
    if not logging.getLogger().handlers:
        set_up_logging()
    check_run(config.out, config.init, config.resume)
    config = changed(config, {"shards": [as_set(each, packing).place for each in sources]})
    with reported("fastmoco.pretrain"):
        return Run(train(config, callbacks=callbacks))
