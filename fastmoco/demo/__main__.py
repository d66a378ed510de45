"""The whole way on a small set: images, shards, training, probe, report. `python -m fastmoco.demo`."""

from __future__ import annotations

from fastmoco.commandline import parse
from fastmoco.demo.args import Args
from shards.command import command

NAME = "fastmoco.demo"


def main() -> None:
    """Entry of the command: parse, then run. torch is imported once the flags are known to be right."""
    command(NAME, _main, interrupted="stopped; the same command resumes")


def _main() -> None:
    args = parse(Args, NAME)
    from fastmoco.demo.stages import run
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(args)


if __name__ == "__main__":
    main()
