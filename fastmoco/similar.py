"""The images of written features that are most similar to an image: `fastmoco similar`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmoco.commandline import CommandParser
from fastmoco.flags import ConfigError, named
from fastmoco.probes.settings import UNTRAINED
from fastmoco.results import check_file, check_readable, write_json
from fastmoco.scalings import bits_of, common
from shards.command import command
from shards.words import display

if TYPE_CHECKING:
    import numpy as np

    from fastmoco.features.search import Match

NAME = "fastmoco similar"

log = logging.getLogger(__name__)


def main() -> None:
    """Entry of the command: parse, then search."""
    command(NAME, _main)


def parser() -> CommandParser:
    """The command's parser."""
    made = CommandParser(
        NAME,
        examples=(
            "{prog} cat.jpg --in features/", "{prog} cats/7.jpg cats/8.jpg --in s3://bucket/features --k 20",
        ),
        description="Print the images whose features are most similar to those of IMAGE, by cosine similarity.",
    )  # fmt: skip
    text = "File of an image, or the name of one in the features, which need no encoder then."
    made.add_argument("images", metavar="IMAGE", nargs="+", help=text)
    data = made.add_argument_group("features and encoder")
    data.add_argument("--in", dest="features", metavar="PATH", required=True, help="What fastmoco embed has written.")
    text = "Encoder of the features, for files; default: the file that fastmoco embed was given."
    data.add_argument("--checkpoint", metavar="PATH", help=text)
    text = "Compare all images, although there is an index (fastmoco embed --index)."
    data.add_argument("--exact", action="store_true", help=text)
    output = made.add_argument_group("output")
    output.add_argument("--k", metavar="INT", type=int, default=10, help="Number of images to print (default: 10).")
    output.add_argument("--json", metavar="PATH", type=Path, help="File to write the result to.")
    return made


def _main() -> None:
    given = parser().parse_args()
    if given.k < 1:
        raise ConfigError(f"--k is {given.k}; it must be at least 1")
    check_file("--json", given.json, given.checkpoint, *given.images)
    check_readable("--checkpoint", None if given.checkpoint in (None, UNTRAINED) else Path(given.checkpoint))
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    found = run(given.images, given.features, given.checkpoint, given.k, given.exact)
    for image, matches in zip(given.images, found, strict=True):
        print("\n".join([display(image), *(f"  {_in_words(match)}" for match in matches)]))
    if given.json:
        result = [{"image": image, "similar": [asdict(match) for match in matches]}
                  for image, matches in zip(given.images, found, strict=True)]  # fmt: skip
        write_json(given.json, {"features": given.features, "k": given.k, "results": result})


def run(images: Sequence[str], features: str, checkpoint: str | None, k: int, exact: bool = False) -> list[list[Match]]:
    """The k most similar images of each; an image that is named is not similar to itself.

    Args:
        images: files, or names in the features.
        features: folder or URL of the features.
        checkpoint: encoder of the features; None for the one that they were made with.
        k: number of images.
        exact: whether to compare all images where there is an index, too.

    Raises:
        UserError: the features, an image or the encoder cannot be read, or it is another encoder.
    """
    import numpy as np

    from fastmoco.features.index import open_index
    from fastmoco.features.parts import about_of
    from fastmoco.features.search import features_of, most_similar, names_in_words

    files = [image for image in images if Path(image).exists() and not Path(image).is_dir()]
    queries = dict(zip(files, _embedded(files, features, checkpoint), strict=True)) if files else {}
    wanted = set(images) - queries.keys()
    by_name = features_of(features, wanted) if wanted else {}
    unknown = [image for image in images if image not in queries and image not in by_name]
    if unknown:
        where = names_in_words(features)
        raise ConfigError(f"{display(unknown[0])} is neither a file nor the name of an image in {where}")
    own = {name: number for name, (number, _) in by_name.items()}
    queries |= {name: feature for name, (_, feature) in by_name.items()}
    index, reason = (None, "") if exact else open_index(features, about_of(features))
    if reason:
        log.warning("all images are compared: %s", reason)
    asked = np.stack([queries[image] for image in images]), k + bool(own)
    if index is None:
        matches = most_similar(features, *asked)
    else:
        log.info("searched by the index: %s", index.in_words)
        matches = index.most_similar(features, *asked)
    return [
        [match for match in found if match.id != own.get(image)][:k]
        for image, found in zip(images, matches, strict=True)
    ]


def _embedded(files: Sequence[str], features: str, checkpoint: str | None) -> np.ndarray:
    """Features float32 [N, D] of files, by the encoder that made those in `features`."""
    from fastmoco.features.parts import about_of
    from fastmoco.runs.progress import loading, waiting

    about: dict[str, Any] = about_of(features)
    with loading():
        from fastmoco.api.embedding import embed
        from fastmoco.probes.encoders import open_encoder, transform_of
        from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD

    path = checkpoint or about["checkpoint"]
    if path is None:
        raise ConfigError(f"{features} does not say which file its encoder is in; give it by --checkpoint")
    with named("--checkpoint"), waiting(f"opening the encoder {path}"):
        frozen = open_encoder(path, about["arch"], about["seed"], about["image_size"])
        if frozen.digest != about["encoder"]:
            raise ConfigError(f"{path} is not the encoder of {features}, or was trained further; give the one that is")
    transform = transform_of(frozen.encoder, about["image_size"], about["resize"])
    # that of the features: the file may say less of it than the one that they were made with
    scaling = about.get("scaling")
    transform = replace(
        transform,
        mean=tuple(about.get("mean", IMAGENET_MEAN)), std=tuple(about.get("std", IMAGENET_STD)),
        scaling=common(scaling), bits=bits_of(scaling),
    )  # fmt: skip
    return embed(files, (frozen.encoder, transform), precision=about["precision"]).features


def _in_words(match: Match) -> str:
    label = f"  ({match.class_name})" if match.class_name is not None else ""
    return f"{match.similarity:6.3f}  {match.name}{label}"


if __name__ == "__main__":
    main()
