"""Draw views for a visual check: `fastmoco sheet`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pipelines.augmentation import AUGMENTATIONS
from shards.command import Parser, UsageError, command
from shards.storage.trial import check_file

NAME = "fastmoco sheet"


def main() -> None:
    """Entry of the command."""
    command(NAME, _main)


def parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        NAME,
        description="Draw views of the same images by every available backend, side by side.",
        examples=("{prog} --shards shards/", "{prog} --shards shards/ --augmentation v1 --count 4 --out v1.png"),
    )
    add = parser.add_argument_group("images").add_argument
    add("--shards", required=True, nargs="+", metavar="PATH", help="shard set, a folder or a URL; or several")
    add("--weights", type=float, nargs="+", default=(), metavar="W", help="of several sets; see fastmoco train")
    add("--count", type=int, default=8, metavar="N", help="number of images (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the order and the views (default: %(default)s)")
    add("--epoch", type=int, default=0, metavar="N", help="epoch of the order and the views (default: %(default)s)")
    add = parser.add_argument_group("views").add_argument
    help_augmentation = "that of MoCo v1, v2 or v3 (default: %(default)s)"
    add("--augmentation", choices=tuple(AUGMENTATIONS), default="v2", help=help_augmentation)
    side = "side of a view in pixels (default: %(default)s)"
    add("--image-size", type=int, default=224, metavar="N", help=side)
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, default=Path("views.png"), metavar="PATH", help="PNG to write (default: %(default)s)")
    return parser


# at most 256 rows of 4,096 pixels: a picture that can still be opened
_RANGES = {"count": (1, 256), "seed": (0, 2**63 - 1), "epoch": (0, 2**31 - 1), "image_size": (16, 4096)}


def _main() -> None:
    given = parser().parse_args()
    for name, (low, high) in _RANGES.items():
        if not low <= (value := getattr(given, name)) <= high:
            raise UsageError(f"--{name.replace('_', '-')} {value} is outside {low}..{high}")
    check_file("--out", given.out)
    if given.out.suffix.lower() != ".png":
        raise UsageError(f"--out {given.out}: the picture is a PNG; give a name that ends in .png")
    # torch, Numba and DALI take seconds to load: only once the flags are known to be right
    from pipelines.pictures import compare
    from shards import ShardSet

    make = AUGMENTATIONS[given.augmentation]
    place = {"count": given.count, "seed": given.seed, "epoch": given.epoch}
    with ExitStack() as stack:
        shards = [stack.enter_context(ShardSet(each)) for each in given.shards]
        lines = compare(shards, make(given.image_size), given.out, weights=tuple(given.weights), **place)
    print("\n".join([*lines, f"wrote {given.out}"]))


if __name__ == "__main__":
    main()
