"""Fine-tuning on all labels or a few: `fastmoco finetune`; `torchrun -m fastmoco finetune` on several devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmoco.commandline import CommandParser, given_in_file, parser_of
from fastmoco.finetuning.settings import GROUPS, FinetuneSettings
from fastmoco.probes.command import check_places, run_classifier
from fastmoco.results import check_file, check_readable, classified_in_words
from shards.command import command

if TYPE_CHECKING:
    from fastmoco.finetuning.loop import Finetuning

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
    check_places(settings)
    check_readable("--list", settings.list)
    check_file("--write-list", settings.write_list, settings.list, settings.checkpoint)
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(settings)


def run(settings: FinetuneSettings) -> dict[str, Any]:
    """Train, evaluate, print the result, and write it to --json; returns it."""
    return run_classifier(settings, _training, in_words)


def _training() -> type[Finetuning]:
    from fastmoco.finetuning.loop import Finetuning

    return Finetuning


def in_words(result: dict[str, Any]) -> str:
    """The result as text."""
    images, of = result["labels"]["images"], result["labels"]["of"]
    what = f"trained on {images:,} of {of:,} labelled images"
    return classified_in_words("fine-tuned", "finetune", result, result, f", {what}")


if __name__ == "__main__":
    main()
