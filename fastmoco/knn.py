"""Weighted k-nearest-neighbour probe of frozen features."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fastmoco import flags
from fastmoco.architectures import check_arch
from fastmoco.commandline import CommandParser, given_in_file, parser_of
from fastmoco.probes.settings import UNTRAINED, BatchSettings, CachedSettings
from fastmoco.results import check_file, check_folder, check_readable, evaluated_in_words, left_out_in_words, write_json
from shards.command import command

NAME = "fastmoco knn"


@dataclass(frozen=True)
class VoteSettings:
    """The vote of the nearest neighbours."""

    k: tuple[int, ...] = (20,)
    """Number of neighbours k; several values produce a table."""
    temperature: tuple[float, ...] = (0.07,)
    """Temperature of the weighted vote; several values produce a table."""


@dataclass(frozen=True)
class OutputSettings:
    """The result."""

    json: Path | None = None
    """File to write the result to."""


GROUPS: dict[str, type] = {
    "encoder and data": CachedSettings,
    "neighbours": VoteSettings,
    "hardware": BatchSettings,
    "output": OutputSettings,
}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class Args(OutputSettings, BatchSettings, VoteSettings, CachedSettings):
    """Classify one shard set by the nearest neighbours in another, with features of a frozen encoder."""

    seed: int = 0
    """Seed of an untrained encoder."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        check_arch(self.arch)
        flags.some(self, "k", "temperature")
        flags.at_least(1, self, "k", "batch_size", "image_size", "resize", "threads")
        flags.at_least(0, self, "seed")
        flags.check_sizes(self)
        flags.positive(self, "temperature")
        flags.share(self, "decoder_load")


def main() -> None:
    """Entry of the command: parse, then probe. torch is imported once the flags are known to be right."""
    command(NAME, _main)


def parser(arguments: Sequence[str] = ()) -> CommandParser:
    """The command's parser; the defaults are those of the arguments' --config."""
    return parser_of(
        Args,
        NAME,
        groups=GROUPS,
        given=given_in_file(Args, arguments),
        examples=(
            "{prog} --checkpoint RUN --train shards/ --val val/",
            "{prog} --checkpoint encoder.pth --train shards/ --val val/ --k 10 20 200 --temperature 0.07 0.2",
            "{prog} --checkpoint untrained --arch resnet50 --train shards/ --val val/",
        ),
    )


def _main() -> None:
    args = Args(**vars(parser(sys.argv[1:]).parse_args()))
    check_file("--json", args.json, args.checkpoint)
    check_folder("--cache", args.cache)
    check_readable("--checkpoint", None if args.checkpoint == UNTRAINED else Path(args.checkpoint))
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(args)


def run(args: Args) -> dict[str, Any]:
    """Probe, print the result, and write it to --json; returns it."""
    from fastmoco.runs.progress import loading, waiting

    with loading():
        from fastmoco.probes.encoders import open_encoder, unchanged
        from fastmoco.probes.knn import Probe
        from fastmoco.ranks.encoders import agree_on_encoder
        from fastmoco.ranks.world import world
        from fastmoco.views import resize_for

    with flags.named("--checkpoint"), waiting(f"opening the encoder {args.checkpoint}"):
        frozen = open_encoder(args.checkpoint, args.arch, args.seed, args.image_size)
    size = frozen.image_size
    resize = args.resize or resize_for(size)
    votes = list(product(args.k, args.temperature))
    with world() as here:
        agree_on_encoder(here, args.checkpoint, frozen.digest)
        probe = Probe(
            args.train, args.val, size, resize, here, args.batch_size, args.precision, args.reading, max(args.k),
        )  # fmt: skip
        frozen.check_images(probe.sets.train, probe.sets.val)
        encoder = frozen.encoder.to(here.device)
        with unchanged(encoder):
            banks = probe.banks(encoder, frozen.digest, args.cache)
            top1 = probe.table(banks, votes)
            of_all = top1 if probe.sets.among is None else probe.table(banks, votes, all_classes=True)
        rows = [
            {"k": k, "temperature": temperature, "knn_top1": value, "knn_top1_all_classes": among_all}
            for (k, temperature), value, among_all in zip(votes, top1, of_all, strict=True)
        ]
        # the first pair's accuracy also at the top level, for scripts that give only one
        result = rows[0] | {
            "results": rows, "image_size": size, "resize": resize, "precision": args.precision,
            "pipeline": probe.backend, "checkpoint": args.checkpoint, "arch": frozen.arch, "encoder": frozen.digest,
            **probe.sets.summary(), "left_out": {"train": len(banks[0].bad), "val": len(banks[1].bad)},
        }  # fmt: skip
        if here.is_main:
            print(in_words(result))
            if args.json:
                write_json(args.json, result)
    return result


def in_words(result: dict[str, Any]) -> str:
    """The result as text: one line, or a table of k by temperature."""
    rows, part = result["results"], result["evaluated"] is not None
    what = f"({evaluated_in_words(result)}"
    left_out = left_out_in_words(result["left_out"])
    if len(rows) == 1:
        among_all = f"; among all classes {rows[0]['knn_top1_all_classes']:.2f} %" if part else ""
        return f"kNN top-1 {rows[0]['knn_top1']:.2f} % {what}, k {rows[0]['k']}){among_all}{left_out}"
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    lines = [f"kNN top-1 in % {what}){left_out}", "      k" + "".join(f"{f'τ {t:g}':>9}" for t in temperatures)]
    for k in dict.fromkeys(row["k"] for row in rows):
        cells = [f"{row['knn_top1']:9.2f}" for row in rows if row["k"] == k]
        lines.append(f"{k:7d}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
