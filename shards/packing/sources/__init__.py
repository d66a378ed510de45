"""Sources of images: folders, lists, tables, tars, zips and databases, local or at URLs, as streams of records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.errors import PackError
from shards.images.formats import EXTENSIONS
from shards.packing.options import SOURCES, PackOptions
from shards.packing.sources.archives import Archives
from shards.packing.sources.devkit import is_truth, read_truth
from shards.packing.sources.embedded import EmbeddedSource, holds_images
from shards.packing.sources.fields import Fields
from shards.packing.sources.folder import FolderSource, NamedFiles
from shards.packing.sources.gzipped import GzippedTars
from shards.packing.sources.jsonl import JsonlSource
from shards.packing.sources.label_files import FromFile, read_table
from shards.packing.sources.labelled import FromPath, Labelled, Labeller, NoLabels
from shards.packing.sources.lmdbs import LmdbSource, is_database
from shards.packing.sources.parts import PartsSource
from shards.packing.sources.record import Record, Source
from shards.packing.sources.selection import Selection
from shards.packing.sources.tables import CsvSource, ListSource, ParquetSource
from shards.packing.sources.tars import TarSource
from shards.packing.sources.zips import ZipSource
from shards.pool import cores
from shards.storage.places import is_url, joined
from shards.storage.store import open_folder, open_place
from shards.words import display

__all__ = ["FolderSource", "NamedFiles", "Record", "Source", "names_in", "open_source"]

_KINDS = {
    ".txt": "list",
    ".lst": "list",
    ".list": "list",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".tar": "tars",
    ".zip": "zips",
    ".mdb": "lmdb",
    ".lmdb": "lmdb",
}

_TABLES = {"csv": CsvSource, "jsonl": JsonlSource, "parquet": ParquetSource}


def open_source(options: PackOptions) -> Source:
    """The source that the options name.

    Raises:
        PackError: It does not exist, its kind cannot be detected, or an option does not apply to it.
    """
    src = os.fspath(options.src)
    selection = Selection(options.exclude, options.include_hidden)
    kind = _kind(src, selection) if options.source == "auto" else options.source
    _check_flags(options, kind)
    source = _open(options, src, kind, selection)
    if isinstance(source, Archives):
        source.workers = min(options.workers or cores(), cores())
    labeller = _labeller(options, source)
    return source if labeller is None else Labelled(source, labeller)


def _open(options: PackOptions, src: str, kind: str, selection: Selection) -> Source:
    root = None if options.root is None else os.fspath(options.root)
    if kind == "arrow" or (kind == "parquet" and _embedded(src, selection, options)):
        if root is not None:
            raise PackError(
                f"--root {root} is for lists and tables of paths, but --src {display(src)} holds the images"
            )
        columns = options.image_column, options.label_column, options.name_column
        return EmbeddedSource(src, kind, selection, *columns, options.all_splits)
    if kind == "folder":
        return FolderSource(src, None if is_url(options.out) else Path(options.out), selection)
    if kind == "list":
        return ListSource(src, root, selection)
    if kind in _TABLES:
        table, fields = _TABLES[kind], Fields(options.path_column, options.label_column, options.name_column)
        if _is_folder(src):
            return PartsSource(src, root, selection, table, fields)
        return table(src, root, selection, fields)
    if kind == "zips":
        return ZipSource(src, selection)
    if kind == "lmdb":
        return LmdbSource(src, selection)
    rule, _, key = options.label_from.partition(":")
    tars = GzippedTars if kind == "targz" else TarSource
    return tars(src, selection, key if rule == "json" else "")


def _check_flags(options: PackOptions, kind: str) -> None:
    """Raise PackError for a flag that does not apply to a source of this kind."""
    table = options.labels is not None and not is_truth(os.fspath(options.labels))
    if options.label_column is not None and kind not in (*_TABLES, "arrow") and not table:
        raise PackError(f"--label-column {options.label_column} is for tables, but --src is of kind {kind}")
    if options.name_column is not None and kind not in (*_TABLES, "arrow"):
        raise PackError(f"--name-column {options.name_column} is for tables, but --src is of kind {kind}")
    if options.root is not None and kind not in ("list", *_TABLES):
        raise PackError(f"--root {options.root} is for lists and tables, but --src is of kind {kind}")
    if options.image_column is not None and kind not in ("parquet", "arrow"):
        raise PackError(
            f"--image-column {options.image_column} is for Parquet and Arrow files, but --src is of kind {kind}"
        )
    if options.label_from.startswith("json:") and kind not in ("tars", "targz"):
        raise PackError(f"--label-from {options.label_from} is for tars, but --src is of kind {kind}")
    given = [f"--label-from {options.label_from}"] * (options.label_from != "auto")
    given += [f"--labels {options.labels}"] * (options.labels is not None)
    given += [f"--label-column {options.label_column}"] * (
        options.label_column is not None and kind in (*_TABLES, "arrow")
    )
    if len(given) > 1:
        raise PackError(f"{' and '.join(given)} both give labels; choose one of them")
    if options.synsets is not None and (options.labels is None or table):
        raise PackError(f"--synsets {options.synsets} is for --labels with ILSVRC2012's ground truth")


def _labeller(options: PackOptions, source: Source) -> Labeller | None:
    """What gives labels in place of the source's own; None if the source does."""
    if options.labels is None:
        if options.label_from == "auto" and source.kind == "zips":
            return FromPath("folder", asked=False)
        own = options.label_from == "auto" or options.label_from.startswith("json:")
        return None if own else NoLabels() if options.label_from == "none" else FromPath(options.label_from)
    place = os.fspath(options.labels)
    if is_truth(place):
        return read_truth(place, None if options.synsets is None else os.fspath(options.synsets), source.root)
    # the columns are those of the source, if it is a table itself
    names = options.path_column if options.path_column != "path" and source.kind not in (*_TABLES, "arrow") else None
    unnamed = source.kind in (*_TABLES, "arrow") and options.name_column is None
    remedy = "; --name-column takes the images' names from a column of --src" if unnamed else ""
    return FromFile(place, source.root, read_table(place, names, options.label_column), remedy)


def _embedded(src: str, selection: Selection, options: PackOptions) -> bool:
    """Whether Parquet files hold images, not paths."""
    if options.image_column is not None:
        return True
    return options.path_column == "path" and holds_images(src, "parquet", selection, options.path_column)


def _kind(src: str, selection: Selection) -> str:
    """Kind of a source: by its name, for folders by their content, for other files by their first bytes."""
    try:
        if not is_url(src):
            os.stat(src)  # a missing source raises here; `isdir` would call it "not a folder"
            if os.path.isdir(src):
                return "lmdb" if is_database(src) else _kind_of_folder(src, selection)
        known = _kind_of_name(src)
        if known == "image" and not is_url(src):
            raise PackError(f"--src {display(src)} is an image; give the folder that holds it, or a list of images")
        if known in (None, "image"):
            known = _kind_of_folder(src, selection) if is_url(src) and _is_folder(src) else _kind_by_content(src)
        return known
    except OSError as error:
        raise PackError(f"cannot read --src {display(src)}: {error.strerror}") from None


def _kind_of_folder(src: str, selection: Selection) -> str:
    """`tars`, `zips` or a kind of table if the folder holds those and neither images nor folders, else `folder`.

    One whose folders hold Parquet or Arrow files alone is of that kind, too: a data set of Hugging Face has them in
    `data/`.
    """
    kinds: set[str | None] = set()
    folders = []
    for name, is_folder in names_in(src):
        if selection.is_hidden(os.fsencode(name)):
            continue
        kind = "folder" if is_folder else _kind_of_name(name)
        if kind == "image":
            return "folder"
        if is_folder:
            folders.append(name)
        else:
            kinds.add(kind)
    if folders:
        return "folder" if kinds & {*_KINDS.values(), "targz"} else _kind_of_folders(src, folders, selection)
    # before tables: img2dataset writes one beside each tar
    tables = (*_TABLES, "arrow")
    for what, group in (("archives of several kinds", ("tars", "targz", "zips")), ("tables of several kinds", tables)):
        found = [kind for kind in group if kind in kinds]
        if len(found) > 1:
            choices = " or --source ".join(found)
            raise PackError(f"--src {display(src)} holds {what}; choose with --source {choices}")
        if found:
            return found[0]
    return "folder"


def _kind_of_name(name: str) -> str | None:
    """Kind of a file by its name, `image` for an image; None if it is not known."""
    extension = os.path.splitext(name)[1].lower()
    if extension.encode(errors="replace")[1:] in EXTENSIONS:
        return "image"
    return "targz" if name.lower().endswith((".tar.gz", ".tgz")) else _KINDS.get(extension)


def _kind_of_folders(src: str, folders: Sequence[str], selection: Selection) -> str:
    """`parquet` or `arrow` if a source's folders hold such files alone, else `folder`."""
    kinds: set[str | None] = set()
    for folder in folders:
        try:
            for name, is_folder in names_in(joined(src, folder)):
                if not selection.is_hidden(os.fsencode(name)):
                    kinds.add("folder" if is_folder else _kind_of_name(name))
                if not kinds <= {None, "parquet", "arrow"}:
                    return "folder"  # soon: at the first image of the first class
        except OSError:  # it is reported when images are searched for
            return "folder"
    kinds.discard(None)
    return kinds.pop() or "folder" if len(kinds) == 1 else "folder"


def _is_folder(src: str) -> bool:
    return any(names_in(src)) if is_url(src) else os.path.isdir(src)


def names_in(src: str) -> Iterator[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder; OSError if it cannot be read."""
    if is_url(src):
        store, folder = open_folder(src)
        yield from ((name, size < 0) for name, size in store.sizes(folder).items())
        return
    with os.scandir(src) as entries:
        yield from ((entry.name, entry.is_dir()) for entry in entries)


def _kind_by_content(src: str) -> str:
    with open_place(src) as file:
        head = file.read(512)
    if not head:
        raise PackError(f"--src {display(src)} is empty")
    if head[:2] == b"\x1f\x8b":
        return "targz"
    if head[:4] == b"PAR1":
        return "parquet"
    if head.startswith(b"PK\3\4"):
        return "zips"
    if head[257:262] == b"ustar":  # in the first header of USTAR, GNU and PAX tars alike
        return "tars"
    raise PackError(f"cannot detect the kind of --src {display(src)}; name it with --source ({', '.join(SOURCES[1:])})")
