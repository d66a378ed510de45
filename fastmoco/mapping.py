"""A page with a map of written features, and the neighbours of each image: `fastmoco map`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastmoco import flags
from fastmoco.commandline import CommandParser, parser_of
from fastmoco.results import check_file
from shards.command import command
from shards.storage.files import write_whole
from shards.words import counted, human_bytes

NAME = "fastmoco map"
MOST = 20_000
"""Images of a page, at most: more points lie on one another, and their thumbnails have over 30 MB."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """The map."""

    method: Literal["auto", "tsne", "pca"] = "auto"
    """tsne: t-SNE, from the extra `map`; pca: the first two principal components; auto: t-SNE where it is installed."""
    seed: int = 0
    """Seed of t-SNE: the same features and seed give the same map."""
    points: int = 5000
    """Images on the page, evenly spaced over the set; at most 20000."""
    k: int = 12
    """Neighbours of each image."""


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """The page."""

    out: Path
    """HTML file to write."""
    images: str | None = None
    """Set of the features (folder or URL), for thumbnails; default: where it was when they were written."""
    thumbnail: int = 64
    """Width and height of a thumbnail in pixels, a multiple of 16; an image of 64 adds about 2 kB to the page."""


GROUPS: dict[str, type] = {"map": MapSettings, "output": OutputSettings}


@dataclass(frozen=True, kw_only=True)
class Args(OutputSettings, MapSettings):
    """Write a page with a map of features in two dimensions, thumbnails, and the neighbours of each image."""

    def __post_init__(self) -> None:
        """Check what can be checked without the features; raises ConfigError."""
        flags.at_least(1, self, "points", "k")
        flags.at_most(MOST, self, "points")
        flags.at_most(100, self, "k")
        flags.at_least(0, self, "seed")
        flags.at_most(2**32 - 1, self, "seed")
        flags.at_least(16, self, "thumbnail")
        flags.at_most(256, self, "thumbnail")
        flags.require(self.thumbnail % 16 == 0, f"--thumbnail is {self.thumbnail}; it must be a multiple of 16")


def main() -> None:
    """Entry of the command: parse, then read the features."""
    command(NAME, _main)


def parser() -> CommandParser:
    """The command's parser."""
    made = parser_of(
        Args, NAME, groups=GROUPS,
        examples=(
            "{prog} --in features/ --out map.html",
            "{prog} cats/7.jpg dogs/3.jpg --in features/ --out map.html --points 20000",
            "{prog} --in s3://bucket/features --images s3://bucket/set --method pca --out map.html",
        ),
    )  # fmt: skip
    text = (
        "Name of an image to begin with: it is on the page, with the most similar ones of all images. Default: eight."
    )
    made.add_argument("show", metavar="IMAGE", nargs="*", default=(), help=text)
    made.add_argument("--in", dest="features", metavar="PATH", required=True, help="What fastmoco embed has written.")
    return made


def _main() -> None:
    given = vars(parser().parse_args())
    features, show = given.pop("features"), tuple(given.pop("show"))
    args = Args(**given)
    check_file("--out", args.out)
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    run(features, show, args)


def run(features: str, show: Sequence[str], args: Args) -> None:
    """Write the page, and print what it shows.

    Args:
        features: folder or URL of the features.
        show: names of images to begin with.
        args: the flags.

    Raises:
        UserError: the features or the set cannot be read, or do not belong together.
    """
    from fastmoco.runs.progress import loading

    with loading():
        from fastmoco.api.sources import as_set
        from fastmoco.maps.html import Map, html
        from fastmoco.maps.points import as_it_was, sampled, sheets
        from fastmoco.maps.projection import opentsne, plane
        from shards import ShardSet

    if args.method == "tsne":
        opentsne(needed=True)
    points = sampled(features, args.points, show, args.k)
    about = points.about
    with flags.named("--images"):
        place = as_set(args.images or about["place"], keep_16_bit=about.get("scaling") is not None).place
        shard_set = as_it_was(ShardSet(place), about["set"])
    with shard_set:
        other = f"{args.images or place} is not the set of the features in {features}, which are of {about['place']}"
        flags.require(shard_set.digest == about["set"], f"--images: {other}")
        pictures, blank = sheets(shard_set, points.ids, args.thumbnail)
        # a folder of images was packed into the cache, where its set is named after a hash
        named = features if re.fullmatch("[0-9a-f]{32}", Path(place).name) else place
        title = Path(str(named).rstrip("/")).name or "images"
    if blank:
        log.warning("%s of %s cannot be read and is shown in grey", counted(blank, "image"), place)
    near, cosines = points.neighbours(args.k)
    coordinates, method = plane(points.unit_ND, args.method, args.seed)
    page = html(Map(points, coordinates, method, near, cosines, pictures, args.thumbnail, blank, title)).encode()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, page)
    shown = f"{len(points.ids):,} of {counted(about['rows'], 'image')}"
    print(f"wrote a map of {shown} to {args.out} ({human_bytes(len(page))}): {method}")


if __name__ == "__main__":
    main()
