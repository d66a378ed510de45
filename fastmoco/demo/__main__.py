"""The whole way on a small set: images, shards, training, probe, report. `fastmoco demo`."""

from __future__ import annotations

from fastmoco.commandline import CommandParser, parser_of
from fastmoco.demo.args import GROUPS, Args
from fastmoco.results import check_folder
from shards.command import command

NAME = "fastmoco demo"


def main() -> None:
    """Entry of the command: parse, then run. torch is imported once the flags are known to be right."""
    command(NAME, _main, interrupted="stopped; the same command resumes")


def parser() -> CommandParser:
    """The command's parser."""
    examples = ("{prog}", "{prog} --src photos/ --limit 2000", "{prog} --steps 100 --out runs/short")
    return parser_of(Args, NAME, groups=GROUPS, examples=examples)


def _main() -> None:
    args = Args(**vars(parser().parse_args()))
    check_folder("--out", args.out)
    from fastmoco.runs.log import set_up_logging
    from fastmoco.runs.progress import loading

    set_up_logging()
    with loading():
        from fastmoco.demo.stages import run
    run(args)


if __name__ == "__main__":
    main()
