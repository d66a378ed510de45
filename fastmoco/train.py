"""Train: `fastmoco train`, or `torchrun -m fastmoco train` for several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastmoco.architectures import by_timm
from fastmoco.commandline import CommandParser, given_in_file, parser_of, recipe_of
from fastmoco.config import GROUPS, Config
from fastmoco.flags import flag
from fastmoco.recipes import RECIPES, as_table, check_given, recipe
from fastmoco.results import check_run
from fastmoco.runs.notify import check_command
from fastmoco.views import alone
from shards.command import command

NAME = "fastmoco train"
DEFAULT = "moco-v2"
ENCODERS_OWN = ("image_size", "mean", "std")
"""Settings that are an encoder's own where they are not given."""


def main() -> None:
    """Entry of the command: parse, then train. torch is imported once the flags are known to be right."""
    command(NAME, run)


def run() -> int:
    """Train under the settings of the command line, or only check that it can."""
    config = parse(sys.argv[1:])
    check_run(config.out, config.init, config.resume)
    check_command(config.notify)
    from fastmoco.runs.log import set_up_logging
    from fastmoco.runs.progress import loading

    set_up_logging()
    if "--dry-run" in sys.argv[1:]:
        return _dry_run(config)
    with loading():
        from fastmoco.trainer.loop import train
    train(config)
    return 0


def _dry_run(config: Config) -> int:
    """Print what was found on rank 0; the exit code is 0 if nothing stops the training, else 2."""
    from fastmoco.runs.progress import loading

    with loading():
        from fastmoco.doctor.command import can_train, show, summary
        from fastmoco.doctor.dry_run import dry_run
    found = dry_run(config)
    for finding in found:
        show(finding)
    if found:
        print(summary(found))
    return 0 if can_train(found) else 2


def parser(arguments: Sequence[str] = ()) -> CommandParser:
    """The command's parser; the defaults are those of the arguments' --recipe and --config."""
    given = alone(given_in_file(Config, arguments))
    defaults = recipe(recipe_of(arguments, DEFAULT, given))
    description = f"Pretrain an image encoder with Momentum Contrast. Recipes: {', '.join(RECIPES)}."
    parser = parser_of(
        Config,
        NAME,
        defaults=defaults,
        groups=GROUPS,
        description=description,
        given=given,
        examples=(
            "{prog} --shards shards/",
            "torchrun --nproc-per-node gpu -m {prog} --shards shards/ --epochs 200",
            "{prog} --recipe demo --shards shards/ --steps 200 --out runs/first",
            "{prog} --shards shards/ --out runs/r50 --dry-run",
        ),
    )
    parser.other.add_argument(
        "--show", action="store_true", help="Print the settings, marking differences from moco-v1, and exit."
    )
    text = "Check data, run folder, checkpoints, disk and memory without training, print what was found, and exit."
    parser.other.add_argument("--dry-run", action="store_true", help=text)
    return parser


def parse(arguments: Sequence[str]) -> Config:
    """Settings from the recipe named on the command line and the flags that override it.

    Raises:
        SystemExit: After --help or --show.
        ConfigError, shards.command.UsageError: The flags are wrong.
    """
    made = parser(arguments)
    defaults = {name: made.get_default(name) for name in ENCODERS_OWN}
    made.set_defaults(**dict.fromkeys(ENCODERS_OWN))
    values = vars(made.parse_args(arguments))
    show, _ = values.pop("show"), values.pop("dry_run")
    given = {name for name in ENCODERS_OWN if values[name] is not None} | given_in_file(Config, arguments).keys()
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    words = {word.partition("=")[0].replace("_", "-") for word in arguments}
    values |= alone({name: values[name] for name in ("augmentation", "crop_min", "views") if flag(name) in words})
    if by_timm(values["arch"]):
        from fastmoco.model.following import following_encoder, own_size  # torch loads, which other names do not need

        values["image_size"] = own_size(values["arch"], given, values["image_size"])
        config = following_encoder(Config(**values), given)
    else:
        config = Config(**values)
    config.milestone_fractions()  # of the command line alone: see there
    check_given(config)
    if show:
        print(as_table(config))
        raise SystemExit(0)
    return config


if __name__ == "__main__":
    main()
