"""A source whose top folders are splits (`imagenet/{train,val}`): the training split is packed, not all as classes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from shards.errors import PackError
from shards.images.formats import EXTENSIONS
from shards.packing.options import PackOptions
from shards.packing.sources import NamedFiles, Record, names_in
from shards.packing.sources.selection import Selection
from shards.storage.places import is_url, joined
from shards.words import counted, display

_TRAINING = ("train", "training", "trainval")
_NAMES = {
    *_TRAINING,
    *("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    *("test", "testing", "unlabeled", "unlabelled"),
}
_YEAR = re.compile(r"[-_ ]?(19|20)\d\d$")  # COCO has train2017


def training_split(options: PackOptions) -> tuple[PackOptions, list[str]]:
    """The options with the training split as `src`, if `src` is a folder of splits; and lines that say so.

    A folder of splits has `train` and other splits as its only top folders with images; names are compared without
    regard to case. Images beside a single split make it an ordinary folder.

    Returns:
        The options to pack with, and what to tell the user first; `options` itself and no line for any other source.

    Raises:
        PackError: The folder holds splits, but none of them, or more than one, is for training.
    """
    src = os.fspath(options.src)
    splits, others, images = _top(options)
    if not splits or (images and len(splits) == 1):
        return options, []
    chosen = _for_training(src, splits)
    lines = [f"{display(src)} holds {_listed('split', splits)}: packing {display(chosen)} alone"]
    for name in splits:
        if name != chosen:
            lines.append(f"to pack {display(name)}: {_command(_of(options, name, splits))}")
    if images:
        lines.append(f"left out {counted(images, 'image')} beside the splits")
    if others:
        lines.append(f"left out {_listed('folder', others)} without images")
    lines.append("to pack all of it, with these folders as the classes: add --all-splits")
    return _of(options, chosen, splits, out=os.fspath(options.out)), lines


def hint(options: PackOptions, classes: Sequence[str]) -> Iterator[str]:
    """A line, if classes that were not asked for by --all-splits are named like splits."""
    found = [name for name in classes if _plain(name) in _NAMES]
    if len(found) > 1 and any(_plain(name) in _TRAINING for name in found) and not options.all_splits:
        text = f"the classes {', '.join(found[:4])} look like splits; to pack one split, "
        if os.fspath(options.src).lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
            others = " ".join(
                f"--exclude {shlex.quote(f'{name}/*')}" for name in found if _plain(name) not in _TRAINING
            )
            yield f"{text}leave out the others: {others} --label-from folder:2"
        else:
            yield f"{text}name its folder as --src"


def _plain(name: str) -> str:
    return _YEAR.sub("", name.lower())


def _top(options: PackOptions) -> tuple[list[str], list[str], int]:
    """The splits that are the source's top folders, its other folders, none of them with images, and its images.

    No splits if another folder holds images.
    """
    src = os.fspath(options.src)
    # a missing source, or one that is a file, is for `open_source`
    if options.all_splits or options.source == "list" or not (is_url(src) or os.path.isdir(src)):
        return [], [], 0
    selection = Selection(options.exclude, options.include_hidden)
    splits: list[str] = []
    others: list[str] = []
    images = 0
    try:
        for name, is_folder in names_in(src):
            raw = os.fsencode(name)
            # `val/*` leaves nothing of val
            if selection.is_hidden(raw) or selection.excludes(raw) or selection.excludes(raw + b"/-"):
                continue
            if is_folder:
                (splits if _plain(name) in _NAMES else others).append(name)
            else:
                images += raw.rpartition(b".")[2].lower() in EXTENSIONS
    except OSError:  # `open_source` reports it
        return [], [], 0
    if not splits or any(_holds_images(joined(src, name)) for name in others):
        return [], [], 0
    return sorted(splits), sorted(others), images


def _holds_images(folder: str) -> bool:
    """Whether a folder holds images or tars by their names, as one of annotations does not."""
    try:
        return any(isinstance(found, Record) for found in NamedFiles(folder, *EXTENSIONS, b"tar").records())
    except PackError:  # it cannot be read
        return False


def _for_training(src: str, splits: Sequence[str]) -> str:
    found = [name for kind in _TRAINING for name in splits if _plain(name) == kind]
    best = [name for name in found if _plain(name) == _plain(found[0])]
    if len(best) == 1:
        return best[0]
    which = "several are for training" if best else "none is for training"
    one = display(shlex.quote(joined(src, (best or splits)[0])))
    raise PackError(
        f"--src {display(src)} holds {_listed('split', splits)}, of which {which}; name one, such as --src {one},"
        " or add --all-splits, which packs all of it with these folders as the classes"
    )


def _listed(kind: str, names: Sequence[str]) -> str:
    *first, last = map(display, names)
    return f"the {kind}s {', '.join(first)} and {last}" if first else f"the {kind} {last}"


def _of(options: PackOptions, split: str, splits: Sequence[str], out: str | None = None) -> PackOptions:
    """The options of packing one split of the source; `out` is by default named after it."""
    return replace(
        options,
        src=joined(os.fspath(options.src), split),
        out=_sibling(os.fspath(options.out), split, splits) if out is None else out,
        exclude=tuple(_patterns(options.exclude, split, splits)),
        all_splits=True,  # it is one split: folders in it are not looked at again
    )


def _patterns(patterns: Sequence[str], split: str, splits: Sequence[str]) -> Iterator[str]:
    """Patterns relative to one split: `train/x` is `/x` for train, and not for val."""
    for pattern in patterns:
        top, slash, rest = pattern.removeprefix("./").lstrip("/").partition("/")
        if slash and top in splits:
            if top == split:
                yield f"/{rest}"
        else:
            yield pattern


def _sibling(out: str, split: str, splits: Sequence[str]) -> str:
    """Another output beside `out`, named after a split: `shards-val/` of `shards/`, `sets/val` of `sets/train`."""
    bare = out.rstrip("/")
    slash = out[len(bare) :]
    if not is_url(out) and os.path.basename(bare) in ("", ".", ".."):
        bare = os.path.abspath(out)
    folder, name = bare[: bare.rfind("/") + 1], bare[bare.rfind("/") + 1 :]
    return f"{folder}{split if name in splits else f'{name}-{split}'}{slash}"


def _command(options: PackOptions) -> str:
    """The command of a packing, quoted for a shell; without values of headers, which may be secrets."""
    words = ["fastmoco", "pack", "--src", os.fspath(options.src), "--out", os.fspath(options.out)]
    for field in fields(PackOptions):
        value = getattr(options, field.name)
        # neither --overwrite nor --append: the output is another one
        if field.name in ("src", "out", "all_splits", "dry_run", "overwrite", "append"):
            continue
        if value in (field.default, [], ()):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if field.name in ("check", "names"):
            words.append(f"--no-{field.name}")
        elif field.name == "headers":
            words += [word for header in value for word in ("--header", f"{header.partition(':')[0]}: ...")]
        elif field.name in ("exclude", "not_in"):
            words += [word for each in value for word in (flag, each)]
        elif field.name == "percentiles":
            words += [flag, *(f"{each:g}" for each in value)]
        else:
            words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return display(shlex.join(words))
