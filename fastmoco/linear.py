"""Linear classification on frozen features: `fastmoco linear`; `torchrun -m fastmoco linear` on several devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmoco.commandline import CommandParser, given_in_file, parser_of
from fastmoco.probes.command import check_places, run_classifier
from fastmoco.probes.linear_settings import GROUPS, LinearSettings
from fastmoco.results import check_folder, classified_in_words
from shards.command import command

if TYPE_CHECKING:
    from fastmoco.probes.linear import LinearProbe

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
    check_places(settings)
    check_folder("--cache", settings.cache)
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(settings)


def run(settings: LinearSettings) -> dict[str, Any]:
    """Probe, print the result, and write it to --json; returns it."""
    return run_classifier(settings, _training, in_words)


def _training() -> type[LinearProbe]:
    from fastmoco.probes.linear import LinearProbe

    return LinearProbe


def in_words(result: dict[str, Any]) -> str:
    """The result as text: a line for each learning rate."""
    return "\n".join(
        classified_in_words("linear", "linear", row, result, f", lr {row['lr']:g}") for row in result["results"]
    )


if __name__ == "__main__":
    main()
