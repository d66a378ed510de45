"""Transfer to detection and segmentation: `fastmoco detect`, or `torchrun -m fastmoco detect` for several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastmoco.commandline import CommandParser, given_in_file, parser_of, recipe_of
from fastmoco.detection.settings import GROUPS, RANDOM, RECIPES, DetectSettings, recipe
from fastmoco.results import check_file, check_readable, check_run_folder, left_out_in_words, write_json
from fastmoco.runs.notify import check_command
from shards.command import command

NAME = "fastmoco detect"
DEFAULT = "voc-c4"


def main() -> None:
    """Entry of the command: parse, then train. torch is imported once the flags are known to be right."""
    command(NAME, _main)


def _main() -> None:
    settings = parse(sys.argv[1:])
    check_run_folder(settings.out)
    check_file("--json", settings.json, settings.init)
    check_command(settings.notify)
    check_readable("--init", None if settings.init == RANDOM else Path(settings.init))
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(settings)


def parser(arguments: Sequence[str] = ()) -> CommandParser:
    """The command's parser; the defaults are those of the arguments' --recipe and --config."""
    given = given_in_file(DetectSettings, arguments)
    defaults = recipe(recipe_of(arguments, DEFAULT, given))
    description = f"Train a detector from an encoder's weights and evaluate it. Recipes: {', '.join(RECIPES)}."
    return parser_of(
        DetectSettings,
        NAME,
        defaults=defaults,
        groups=GROUPS,
        description=description,
        given=given,
        examples=(
            "torchrun --nproc-per-node gpu -m {prog} --train VOC2007:trainval VOC2012:trainval --val VOC2007:test "
            "--init RUN",
            "{prog} --recipe coco-fpn-1x --train coco:train2017 --val coco:val2017 --init encoder.pth",
        ),
    )


def parse(arguments: Sequence[str]) -> DetectSettings:
    """Settings from the recipe named on the command line and the flags that override it."""
    return DetectSettings(**vars(parser(arguments).parse_args(arguments)))


def run(settings: DetectSettings) -> dict[str, Any]:
    """Train, evaluate, print the result, and write it to --json; returns it."""
    from fastmoco.runs.progress import loading

    with loading():
        from fastmoco.detection._tools import evaluators
        from fastmoco.detection.loop import Transfer
        from fastmoco.ranks.world import world

    evaluators()  # a missing pycocotools is reported before hours of training
    with world(timedelta(minutes=settings.rank_timeout)) as here:
        result = Transfer(settings, here).run()
        if here.is_main:
            print(in_words(result))
            if settings.json:
                write_json(settings.json, result)
    return result


def in_words(result: dict[str, Any]) -> str:
    """The result as text: a line for each metric."""
    from fastmoco.detection.evaluation import as_text

    def metrics_of(row: dict[str, float | None]) -> str:
        return ", ".join(f"{key} {as_text(row[key])}" for key in ("AP", "AP50", "AP75"))

    rows = {f"pycocotools {kind}": metrics for kind, metrics in result["coco"].items()}
    rows |= {f"VOC {kind}": metrics for kind, metrics in result.get("voc", {}).items()}
    left_out = left_out_in_words({"val": result["left_out"]})
    images = result["val"] - result["left_out"]
    return "\n".join(f"{name}: {metrics_of(row)} ({images} images){left_out}" for name, row in rows.items())


if __name__ == "__main__":
    main()
