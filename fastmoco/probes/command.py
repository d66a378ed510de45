"""What the commands `fastmoco linear` and `fastmoco finetune` share. torch is imported by `run_classifier` alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastmoco import flags
from fastmoco.probes.settings import UNTRAINED, ClassifierSettings
from fastmoco.results import check_file, check_readable, check_run_folder, write_json
from fastmoco.runs.notify import check_command


def check_places(settings: ClassifierSettings) -> None:
    """Try what a training of a classifier reads and writes, before the work; raises ConfigError."""
    check_run_folder(settings.out)
    check_file("--json", settings.json, settings.checkpoint)
    check_command(settings.notify)
    check_readable("--checkpoint", None if settings.checkpoint == UNTRAINED else Path(settings.checkpoint))


def run_classifier(
    settings: ClassifierSettings, training: Callable[[], Callable[..., Any]], in_words: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Train and evaluate a classifier, print the result, and write it to --json; returns it.

    Args:
        settings: of the training.
        training: imports the class of the training, which takes the settings, the encoder and this rank.
        in_words: the result as text.
    """
    from fastmoco.runs.progress import loading, waiting

    with loading():
        from fastmoco.probes.encoders import open_encoder
        from fastmoco.ranks.encoders import agree_on_encoder
        from fastmoco.ranks.patience import check_timeout
        from fastmoco.ranks.world import world

        made = training()
    check_timeout(settings.rank_timeout, settings.train, settings.val)
    with flags.named("--checkpoint"), waiting(f"opening the encoder {settings.checkpoint}"):
        frozen = open_encoder(settings.checkpoint, settings.arch, settings.seed, settings.image_size)
    with world(timedelta(minutes=settings.rank_timeout)) as here:
        agree_on_encoder(here, settings.checkpoint, frozen.digest)
        result = made(settings, frozen, here).run()
        if here.is_main:
            print(in_words(result))
            if settings.json:
                write_json(settings.json, result)
    return result
