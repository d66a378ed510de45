"""Draw views for a visual check: `fastmoco sheet`."""

from __future__ import annotations

from pathlib import Path

from shards.command import Parser, command

NAME = "fastmoco sheet"


def main() -> None:
    """Entry of the command."""
    command(NAME, _main)


def parser() -> Parser:
    """The command's parser."""
    parser = Parser(NAME, description="Draw views of the same images by every available backend, side by side.")
    parser.add_argument("--shards", required=True, help="shard set: a folder or a URL")
    parser.add_argument("--out", type=Path, default=Path("views.png"), help="PNG to write (default: %(default)s)")
    parser.add_argument(
        "--augmentation", choices=("v1", "v2"), default="v2", help="that of MoCo v1 or v2 (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=224, help="side of a view in pixels (default: %(default)s)")
    parser.add_argument("--count", type=int, default=8, help="number of images (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the order and the augmentation (default: %(default)s)"
    )
    parser.add_argument(
        "--epoch", type=int, default=0, help="epoch of the order and the augmentation (default: %(default)s)"
    )
    return parser


def _main() -> None:
    given = parser().parse_args()
    # torch, Numba and DALI take seconds to load: only once the flags are known to be right
    from pipelines.pictures import compare
    from pipelines.views import ViewSpec
    from shards import ShardSet

    make = ViewSpec.moco_v1 if given.augmentation == "v1" else ViewSpec.moco_v2
    with ShardSet(given.shards) as shards:
        spec = make(given.image_size)
        lines = compare(shards, spec, given.out, count=given.count, seed=given.seed, epoch=given.epoch)
    print("\n".join([*lines, f"wrote {given.out}"]))


if __name__ == "__main__":
    main()
