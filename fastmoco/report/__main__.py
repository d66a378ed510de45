"""Runs: a table in the terminal, and a page of one or several. `fastmoco runs`."""

from __future__ import annotations

from pathlib import Path

from fastmoco.commandline import CommandParser
from shards.command import command

NAME = "fastmoco runs"
SORTS = ("when", "run", "knn", "loss", "speed")  # those of `terminal`, which imports what parsing does not need


def main() -> None:
    """Entry of the command."""
    command(NAME, _main)


def parser() -> CommandParser:
    """The command's parser."""
    examples = (
        "{prog}", "{prog} runs/a", "{prog} runs/a runs/b --png curves.png", "{prog} runs/a --watch",
    )  # fmt: skip
    made = CommandParser(
        NAME,
        examples=examples,
        description="Print a table of runs; of the runs that are named, also write a page: curves, views, nearest "
        "neighbours, settings and how they differ. Without RUN: the table of the runs in ./runs.",
    )
    made.add_argument("runs", metavar="RUN", nargs="*", type=Path, help="Run folder.")
    output = made.add_argument_group("output")
    text = "HTML page to write; default: RUN/report.html for one run, ./runs.html for several."
    output.add_argument("--out", metavar="PATH", type=Path, help=text)
    output.add_argument("--png", metavar="PATH", type=Path, help="PNG of the curves to write; extra plot.")
    text = "Compute nearest neighbours with the newest checkpoints, for the page; the shard sets must be reachable."
    output.add_argument("--neighbours", action="store_true", help=text)
    output.add_argument("--sort", choices=SORTS, default="when", help="Order of the table (default: when).")
    watch = made.add_argument_group("watching")
    watch.add_argument("--watch", action="store_true", help="Renew table and page until the runs end.")
    text = "Seconds between looks at the runs (default: 2)."
    watch.add_argument("--every", metavar="SECONDS", type=float, default=2.0, help=text)
    return made


def _main() -> None:
    given = vars(parser().parse_args())
    from fastmoco.report.show import Args, run

    run(Args(**{**given, "runs": tuple(given["runs"])}))


if __name__ == "__main__":
    main()
