"""Fine-tuning on all labels or a few: `fastmoco finetune`; `torchrun -m fastmoco finetune` on several devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastmoco import flags
from fastmoco.commandline import CommandParser, given_in_file, parser_of
from fastmoco.finetuning.settings import GROUPS, FinetuneSettings
from fastmoco.probes.settings import UNTRAINED
from fastmoco.results import check_file, check_readable, check_run_folder, classified_in_words, write_json
from fastmoco.runs.notify import check_command
from shards.command import command

NAME = "fastmoco finetune"


def main() -> None:
    """Entry of the command: parse, then train. torch is imported once the flags are known to be right."""
    command(NAME, _main)


def parser(arguments: Sequence[str] = ()) -> CommandParser:
    """The command's parser; the defaults are those of the arguments' --config."""
    return parser_of(
        FinetuneSettings,
        NAME,
        groups=GROUPS,
        given=given_in_file(FinetuneSettings, arguments),
        examples=(
            "torchrun --nproc-per-node gpu -m {prog} --checkpoint RUN --train shards/ --val val/ --list 1percent.txt",
            "{prog} --checkpoint RUN --train shards/ --val val/ --fraction 0.1",
            "{prog} --checkpoint untrained --arch resnet50 --train shards/ --val val/",
        ),
    )


def _main() -> None:
    settings = FinetuneSettings(**vars(parser(sys.argv[1:]).parse_args()))
    check_run_folder(settings.out)
    check_file("--json", settings.json)
    check_command(settings.notify)
    check_readable("--list", settings.list)
    check_file("--write-list", settings.write_list)
    check_readable("--checkpoint", None if settings.checkpoint == UNTRAINED else Path(settings.checkpoint))
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(settings)


def run(settings: FinetuneSettings) -> dict[str, Any]:
    """Train, evaluate, print the result, and write it to --json; returns it."""
    from fastmoco.runs.progress import loading, waiting

    with loading():
        from fastmoco.finetuning.loop import Finetuning
        from fastmoco.probes.encoders import open_encoder
        from fastmoco.ranks.patience import check_timeout
        from fastmoco.ranks.world import world

    check_timeout(settings.rank_timeout, settings.train, settings.val)
    with flags.named("--checkpoint"), waiting(f"opening the encoder {settings.checkpoint}"):
        frozen = open_encoder(settings.checkpoint, settings.arch, settings.seed)
    with world(timedelta(minutes=settings.rank_timeout)) as here:
        result = Finetuning(settings, frozen, here).run()
        if here.is_main:
            print(in_words(result))
            if settings.json:
                write_json(settings.json, result)
    return result


def in_words(result: dict[str, Any]) -> str:
    """The result as text."""
    images, of = result["labels"]["images"], result["labels"]["of"]
    what = f"trained on {images:,} of {of:,} labelled images"
    return classified_in_words("fine-tuned", "finetune", result, result, f", {what}")


if __name__ == "__main__":
    main()
