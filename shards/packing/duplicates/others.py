"""The sets that a packing must not share an image with (`--not-in`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shards.errors import PackError
from shards.format.manifest import Manifest
from shards.packing.options import PackOptions
from shards.packing.plan import OFFSETS, ORDER, WORK, Plan
from shards.packing.planning import make_plan
from shards.packing.sources import Source, open_source
from shards.packing.sources.embedded import EmbeddedSource
from shards.packing.sources.gzipped import GzippedTars
from shards.packing.sources.packed import PackedSource, is_packed_set
from shards.storage.base import Store
from shards.words import display


@dataclass(frozen=True)
class Other:
    """Another set: where it is, its images in an order, and the folder with that order.

    Attributes:
        place: As the user names it.
        source: Its images.
        plan: Of reading them.
        folder: Local folder with ORDER and OFFSETS.
        order: Folder of these files in the store.
    """

    place: str
    source: Source
    plan: Plan
    folder: Path
    order: str


def planned(
    options: PackOptions, source: Source, folder: Path, whole_set: Manifest | None = None
) -> tuple[Plan, list[Other]]:
    """The plan of a packing, made in `folder`, and the other sets, each in a folder beside it.

    Args:
        options: As of `make_plan`.
        source: As of `make_plan`.
        folder: As of `make_plan`.
        whole_set: The set that the images are appended to, or have been. If it is one of the other sets as well, it is
            read as it was before, so that the same command is the same packing when they have been appended.

    Raises:
        PackError: As `make_plan`, for the source or another set.
        OSError: A folder cannot be written.
    """
    known = whole_set.classes if whole_set else ()
    plan = make_plan(options, source, folder, known)
    parts = whole_set.appended if whole_set else ()
    part = next((part for part in parts if part.source == plan.source), None)
    if part is not None and not set(plan.classes) <= set(known):
        # it has given the set no class: the set had none then, where a single folder is none, too
        plan = make_plan(options, source, folder)
    grown = (whole_set.digest, part.base) if whole_set and part else None
    others = list(_others(options, folder, grown))
    if others:
        # by their content, not by their place
        hashes = sorted({other.plan.source["hash"][:16] for other in others})
        plan = replace(plan, options={**plan.options, "not_in": hashes})
    return plan, others


def _others(options: PackOptions, folder: Path, grown: tuple[str, str] | None) -> Iterator[Other]:
    for number, place in enumerate(map(str, options.not_in)):
        here = folder.with_name(f"{folder.name}-{number}")
        its = PackOptions(place, options.out, workers=options.workers, include_hidden=True, all_splits=True)
        try:
            source = PackedSource(place, grown) if is_packed_set(place) else open_source(its)
            if isinstance(source.base, EmbeddedSource | GzippedTars):
                raise PackError("its images cannot be read one by one; pack it, and give the packed set")
            plan = make_plan(its, source, here)
        except PackError as error:
            raise PackError(f"--not-in {display(place)}: {str(error).replace('--src', 'PATH')}") from None
        yield Other(place, source, plan, here, f"{WORK}/other-{plan.source['hash'][:16]}")


def keep_order(other: Other, store: Store) -> None:
    """Move the set's order into the store."""
    (store.scratch / other.order).mkdir(parents=True, exist_ok=True)
    store.put({f"{other.order}/{name}": other.folder / name for name in (ORDER, OFFSETS)})
