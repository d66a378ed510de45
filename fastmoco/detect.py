"""Transfer to detection and segmentation: `torchrun -m fastmoco.detect`, or `python -m` for one process.

torchrun -m fastmoco.detect --train VOC2007:trainval VOC2012:trainval --val VOC2007:test --init RUN/checkpoints/….pt
torchrun -m fastmoco.detect --recipe coco-fpn-1x --train coco:train2017 --val coco:val2017 --init encoder.pth
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import tyro

from fastmoco._fail import fail
from fastmoco.detection._tools import evaluators
from fastmoco.detection.errors import BrokenImage, DetectionError
from fastmoco.detection.loop import Transfer, told
from fastmoco.detection.settings import RECIPES, DetectSettings, recipe
from fastmoco.distributed import world
from fastmoco.layouts.files import LayoutError
from fastmoco.runs.checkpoint import CheckpointError
from fastmoco.runs.errors import Stopped, TrainingError
from fastmoco.runs.log import set_up_logging, write_atomically


def parse(arguments: list[str]) -> DetectSettings:
    """Settings from the recipe named on the command line and the flags that override it."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", default="voc-c4")
    name, rest = finder.parse_known_args(arguments)
    description = f"Train a detector that begins with an encoder's weights. Recipes: {', '.join(RECIPES)}."
    defaults = recipe(name.recipe)
    return tyro.cli(DetectSettings, default=defaults, args=rest, description=description, prog="fastmoco.detect")


def main() -> None:
    """Parse, build, train, measure; what the user can mend ends in one line and exit code 2."""
    try:
        settings = parse(sys.argv[1:])
        set_up_logging()
        run(settings)
    except BrokenImage as error:  # which one rank alone meets
        print(f"fastmoco.detect: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except (CheckpointError, DetectionError, LayoutError) as error:
        fail("fastmoco.detect", error, 2)
    except TrainingError as error:
        fail("fastmoco.detect", error, 1)
    except Stopped as reason:
        fail("fastmoco.detect", reason, 130)


def run(settings: DetectSettings) -> dict[str, Any]:
    """Train, measure, print, and write the result; returns it."""
    evaluators()  # that pycocotools is there is known before hours of training
    with world() as here:
        result = Transfer(settings, here).run()
        if here.is_main:
            print(in_words(result))
            if settings.json:
                write_atomically(settings.json, json.dumps(result, indent=2) + "\n")
    return result


def in_words(result: dict[str, Any]) -> str:
    """The result for a person: a line for each metric."""
    rows = {f"pycocotools {kind}": figures for kind, figures in result["coco"].items()}
    rows |= {f"VOC {kind}": figures for kind, figures in result.get("voc", {}).items()}
    return "\n".join(
        f"{name}: AP {told(row['AP'])}, AP50 {told(row['AP50'])}, AP75 {told(row['AP75'])} ({result['val']} images)"
        for name, row in rows.items()
    )


if __name__ == "__main__":
    main()
