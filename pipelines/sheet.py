"""Draw views for a visual check: `fastmoco sheet`."""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from pipelines.augmentation import AUGMENTATIONS, ViewPair
from pipelines.views_file import read
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
    add("--augmentation", choices=tuple(AUGMENTATIONS), help="that of MoCo v1, v2 or v3 (default: v2)")
    smallest = "smallest share of the image that a crop covers (default: that of the augmentation)"
    add("--crop-min", type=float, metavar="SHARE", help=smallest)
    add("--views", type=Path, metavar="FILE", help="TOML file with the views, in place of --augmentation")
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
    pair = _views(given)
    # torch, Numba and DALI take seconds to load: only once the flags are known to be right
    from pipelines.pictures import compare
    from shards import ShardSet

    place = {"count": given.count, "seed": given.seed, "epoch": given.epoch}
    with ExitStack() as stack:
        shards = [stack.enter_context(ShardSet(each)) for each in given.shards]
        lines = compare(shards, pair, given.out, weights=tuple(given.weights), **place)
    print("\n".join([*lines, f"wrote {given.out}"]))


def _views(given: Namespace) -> ViewPair:
    if given.views is not None:
        for name in ("augmentation", "crop_min"):
            if (value := getattr(given, name)) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"--views {given.views} and {flag} {value} are both given; leave out one")
        return read(given.views, given.image_size)
    pair = AUGMENTATIONS[given.augmentation or "v2"](given.image_size)
    return pair if given.crop_min is None else pair.changed(area=(given.crop_min, 1.0))


if __name__ == "__main__":
    main()
