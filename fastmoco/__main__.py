"""The command `fastmoco`: a table of commands, each with the module that runs it.

`python -m fastmoco NAME …` is the same as `fastmoco NAME …`. Where several processes work together they are started
by `torchrun -m fastmoco NAME …`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from shards.command import Parser, UsageError, command, print_version


class Command(NamedTuple):
    """One command. Its module is imported when the command is used, and must import nothing heavy itself.

    Attributes:
        summary: What it does, in one line.
        module: Module that runs it.
        main: Function of the module that runs the command with the arguments in sys.argv[1:] and ends the process.
        parser: Function of the module that returns the command's parser: for shell completion, and for reference pages.
    """

    summary: str
    module: str
    main: str = "main"
    parser: str = "parser"


GROUPS: dict[str, dict[str, Command]] = {
    "shard sets": {
        "pack": Command("pack images into a shard set", "shards.cli", "pack", "pack_parser"),
        "verify": Command("compare a shard set with its checksums", "shards.cli", "verify", "verify_parser"),
        "info": Command("print totals, classes and sizes of a shard set", "shards.cli", "info", "info_parser"),
        "index": Command("turn WebDataset tars into a shard set", "shards.cli", "index", "index_parser"),
        "sheet": Command("draw the views of some images as a PNG", "pipelines.sheet"),
    },
    "training": {
        "train": Command("pretrain an encoder with Momentum Contrast", "fastmoco.train"),
        "demo": Command("train on generated images, or on your own, and write a report", "fastmoco.demo.__main__"),
    },
    "evaluation": {
        "runs": Command("print a table of runs, and write a page of some", "fastmoco.report.__main__"),
        "knn": Command("classify by the nearest neighbours in feature space", "fastmoco.knn"),
        "embed": Command("write the features of all images of a set", "fastmoco.embedding"),
        "similar": Command("print the images that are most similar to one", "fastmoco.similar"),
        "map": Command("write a page with a map of features and neighbours", "fastmoco.mapping"),
        "linear": Command("train linear classifiers on frozen features", "fastmoco.linear"),
        "finetune": Command("train an encoder and a classifier on labels, or a few of them", "fastmoco.finetune"),
        "detect": Command("transfer an encoder to detection and segmentation", "fastmoco.detect"),
        "export": Command("write an encoder for torchvision, timm, detectron2 or MoCo", "fastmoco.export"),
    },
    "this machine": {
        "doctor": Command("say what this machine has, and the remedy for what it lacks", "fastmoco.doctor.command"),
        "completion": Command("print the script that completes fastmoco in a shell", "fastmoco.completion"),
    },
}
COMMANDS = {name: row for group in GROUPS.values() for name, row in group.items()}
_EXAMPLES = (
    "fastmoco pack --src imagenet/train --out shards/",
    "fastmoco train --shards shards/",
    "torchrun --nproc-per-node gpu -m fastmoco train --shards shards/",
    "fastmoco knn --checkpoint RUN --train shards/ --val val/",
)


def main() -> None:
    """Entry of the console script and of `python -m fastmoco`."""
    command("fastmoco", lambda: run(sys.argv[1:]))


def run(words: Sequence[str]) -> None:
    """Run the command that the first word names.

    Raises:
        SystemExit: At the end of the command.
        UsageError: There is no such command.
    """
    name, rest = (words[0], words[1:]) if words else ("--help", ())
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in COMMANDS:
        # as if the command had been started by itself: it reads its own arguments, and its name is in one word
        sys.argv = [f"fastmoco {name}", *rest]
        getattr(import_module(COMMANDS[name].module), COMMANDS[name].main)()
    elif name in ("--help", "-h", "help"):
        print(overview())
    elif name == "--version":
        print_version()
    elif name.startswith("-"):
        raise UsageError(f"{name} is given before a command, as in fastmoco train {name} … (see fastmoco --help)")
    else:
        close = get_close_matches(name, COMMANDS, n=1)
        known = f"did you mean fastmoco {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"no such command: {name!r}; {known} (see fastmoco --help)")


def overview() -> str:
    """The commands in groups, and examples."""
    width = max(map(len, COMMANDS)) + 2
    lines = [
        "usage: fastmoco COMMAND [flags]",
        "",
        "Momentum Contrast pretraining, from a folder of images to an encoder.",
    ]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}{row.summary}" for name, row in group.items())]
    lines += ["", "examples:", *(f"  {line}" for line in _EXAMPLES)]
    lines += ["", "flags of a command: fastmoco COMMAND --help; version: fastmoco --version"]
    return "\n".join(lines)


def parser_of(name: str) -> Parser:
    """The parser of a command, as `fastmoco NAME` uses it."""
    row = COMMANDS[name]
    return getattr(import_module(row.module), row.parser)()


if __name__ == "__main__":
    main()
