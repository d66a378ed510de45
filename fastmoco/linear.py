"""Linear classification on frozen features: `fastmoco linear`; `torchrun -m fastmoco linear` on several devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastmoco import flags
from fastmoco.commandline import CommandParser, given_in_file, parser_of
from fastmoco.probes.linear_settings import GROUPS, LinearSettings
from fastmoco.probes.settings import UNTRAINED
from fastmoco.results import (
    check_file,
    check_folder,
    check_readable,
    check_run_folder,
    classified_in_words,
    write_json,
)
from fastmoco.runs.notify import check_command
from shards.command import command

NAME = "fastmoco linear"


def main() -> None:
    """Entry of the command: parse, then probe. torch is imported once the flags are known to be right."""
    command(NAME, _main)


def parser(arguments: Sequence[str] = ()) -> CommandParser:
    """The command's parser; the defaults are those of the arguments' --config."""
    return parser_of(
        LinearSettings,
        NAME,
        groups=GROUPS,
        given=given_in_file(LinearSettings, arguments),
        examples=(
            "torchrun --nproc-per-node gpu -m {prog} --checkpoint RUN --train shards/ --val val/",
            "{prog} --checkpoint RUN --train shards/ --val val/ --fast --lr 1 3 10 30",
        ),
    )


def _main() -> None:
    settings = LinearSettings(**vars(parser(sys.argv[1:]).parse_args()))
    check_run_folder(settings.out)
    check_file("--json", settings.json)
    check_command(settings.notify)
    check_folder("--cache", settings.cache)
    check_readable("--checkpoint", None if settings.checkpoint == UNTRAINED else Path(settings.checkpoint))
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(settings)


def run(settings: LinearSettings) -> dict[str, Any]:
    """Probe, print the result, and write it to --json; returns it."""
    from fastmoco.runs.progress import loading, waiting

    with loading():
        from fastmoco.probes.encoders import open_encoder
        from fastmoco.probes.linear import LinearProbe
        from fastmoco.ranks.patience import check_timeout
        from fastmoco.ranks.world import world

    check_timeout(settings.rank_timeout, settings.train, settings.val)
    with flags.named("--checkpoint"), waiting(f"opening the encoder {settings.checkpoint}"):
        frozen = open_encoder(settings.checkpoint, settings.arch, settings.seed)
    with world(timedelta(minutes=settings.rank_timeout)) as here:
        result = LinearProbe(settings, frozen, here).run()
        if here.is_main:
            print(in_words(result))
            if settings.json:
                write_json(settings.json, result)
    return result


def in_words(result: dict[str, Any]) -> str:
    """The result as text: a line for each learning rate."""
    return "\n".join(
        classified_in_words("linear", "linear", row, result, f", lr {row['lr']:g}") for row in result["results"]
    )


if __name__ == "__main__":
    main()
