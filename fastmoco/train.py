"""Train: `torchrun -m fastmoco.train`, or `python -m fastmoco.train` for one process."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

import tyro

from fastmoco.config import Config, ConfigError
from fastmoco.recipes import RECIPES, recipe


def parse(arguments: list[str]) -> Config:
    """Settings from the recipe named on the command line and the flags that override it."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", default="moco-v2")
    name, rest = finder.parse_known_args(arguments)
    description = f"Pretrain an image encoder with Momentum Contrast. Recipes: {', '.join(RECIPES)}."
    return tyro.cli(Config, default=recipe(name.recipe), args=rest, description=description, prog="fastmoco.train")


def main() -> None:
    """Parse, build, train, close; what the user can mend ends in one line and exit code 2."""
    try:
        config = parse(sys.argv[1:])
    except ConfigError as error:
        _fail(error, 2)
    # torch and the data libraries load after the flags are known to be right
    from fastmoco.probes.sets import ProbeError
    from fastmoco.runs.checkpoint import CheckpointError
    from fastmoco.runs.errors import Stopped, TrainingError
    from fastmoco.runs.log import set_up_logging
    from fastmoco.trainer.loop import train
    from pipelines import PipelineError
    from shards import ShardSetError

    set_up_logging()
    try:
        train(config)
    except (ConfigError, ShardSetError, PipelineError, CheckpointError, ProbeError) as error:
        _fail(error, 2)
    except TrainingError as error:
        _fail(error, 1)
    except Stopped as reason:
        _fail(reason, 130)


def _fail(reason: Exception, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # all ranks meet the same error; one tells of it
        print(f"fastmoco.train: {reason}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
