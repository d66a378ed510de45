"""Write the features of all images of a set by a frozen encoder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastmoco import flags
from fastmoco.architectures import check_arch
from fastmoco.commandline import CommandParser, given_in_file, parser_of
from fastmoco.probes.settings import UNTRAINED, BatchSettings
from fastmoco.results import check_folder, check_readable
from shards.command import command
from shards.storage.places import is_url
from shards.words import counted

NAME = "fastmoco embed"


@dataclass(frozen=True)
class SourceSettings:
    """The encoder, and the images."""

    checkpoint: str
    """File with an encoder in any known layout (docs/evaluation.md), run folder, or `untrained`."""
    images: str
    """Shard set, a folder or a URL; or a folder of images, which is packed into the cache first."""
    arch: str | None = None
    """Architecture; default: the file's, by its shapes. `untrained` needs it."""
    image_size: int | None = None
    """Side of the crops in pixels; default: that of the views in training, or 224."""
    resize: int | None = None
    """Short side before the centre crop; default: 8/7 of the crop, rounded to a multiple of 8."""


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """The files."""

    out: str
    """Folder or URL for the features; created if missing. What it has of the same features is kept."""
    format: Literal["npy", "parquet"] = "npy"
    """npy: features in .npy, ids, names and labels in .jsonl; parquet: all of them in one file (extra `parquet`)."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the features in the files."""
    part_size: int = 8192
    """Images of a part, which is written at once and not computed again."""
    index: bool = False
    """Write an index, too, by which fastmoco similar searches large sets (extra `faiss`)."""


GROUPS: dict[str, type] = {
    "encoder and images": SourceSettings,
    "hardware": BatchSettings,
    "output": OutputSettings,
}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class Args(OutputSettings, BatchSettings, SourceSettings):
    """Write features of all images of a set: float vectors with ids, names and labels, for other programs."""

    seed: int = 0
    """Seed of an untrained encoder."""

    def __post_init__(self) -> None:
        """Check what can be checked without the images; raises ConfigError."""
        check_arch(self.arch)
        flags.at_least(1, self, "batch_size", "image_size", "resize", "threads", "part_size")
        flags.at_least(0, self, "seed")
        flags.check_sizes(self)
        flags.share(self, "decoder_load")


def main() -> None:
    """Entry of the command: parse, then compute. torch is imported once the flags are known to be right."""
    command(NAME, _main)


def parser(arguments: Sequence[str] = ()) -> CommandParser:
    """The command's parser; the defaults are those of the arguments' --config."""
    return parser_of(
        Args,
        NAME,
        groups=GROUPS,
        given=given_in_file(Args, arguments),
        examples=(
            "{prog} --checkpoint RUN --images shards/ --out features/",
            "{prog} --checkpoint encoder.pth --images my_photos/ --out features/ --format parquet",
            "torchrun --nproc-per-node gpu -m fastmoco embed --checkpoint RUN --images s3://b/set --out s3://b/features",
        ),
    )


def _main() -> None:
    args = Args(**vars(parser(sys.argv[1:]).parse_args()))
    if not is_url(args.out):
        check_folder("--out", Path(args.out))
    check_readable("--checkpoint", None if args.checkpoint == UNTRAINED else Path(args.checkpoint))
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(args)


def run(args: Args) -> dict[str, Any] | None:
    """Compute and write the features, and print what was written; returns on rank 0 the content of embedding.json."""
    from fastmoco.runs.progress import loading, waiting

    with loading():
        from fastmoco.api.sources import as_set
        from fastmoco.api.writing import Output, write
        from fastmoco.features.index import faiss
        from fastmoco.features.rows import arrow
        from fastmoco.probes.encoders import open_encoder, transform_of

    if args.format == "parquet":
        arrow()
    if args.index:
        faiss()
    with flags.named("--checkpoint"), waiting(f"opening the encoder {args.checkpoint}"):
        frozen = open_encoder(args.checkpoint, args.arch, args.seed, args.image_size)
    transform = transform_of(frozen.encoder, frozen.image_size, args.resize)
    with flags.named("--images"):
        place = as_set(args.images, keep_16_bit=transform.bits == 16).place
    checkpoint = args.checkpoint if args.checkpoint == UNTRAINED else str(Path(args.checkpoint).absolute())
    about = write(
        place,
        (frozen.encoder, transform),
        Output(args.out, args.format, args.dtype, args.part_size, args.index),
        {"checkpoint": checkpoint, "arch": frozen.arch, "seed": args.seed},
        batch_size=args.batch_size, precision=args.precision, reading=args.reading,
    )  # fmt: skip
    if about:
        left_out = f"; left out {counted(about['left_out'], 'bad image')}" if about["left_out"] else ""
        print(f"wrote {args.dtype} features [{about['rows']:,}, {about['dim']:,}] to {args.out}{left_out}")
    return about


if __name__ == "__main__":
    main()
