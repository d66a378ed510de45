"""What a source says of its images' labels."""

from __future__ import annotations

from pathlib import Path

from shards import PackOptions
from shards.packing.sources import Record, open_source


def read(src: Path, **changes) -> tuple[dict[str, str | None], list[str]]:
    """Labels by the name of the image, and the notes."""
    source = open_source(PackOptions(src, "out", **changes))
    found = [record for record in source.records() if isinstance(record, Record)]
    labels = {(r.member or r.path).decode(): None if r.label is None else r.label.decode() for r in found}
    return labels, list(source.notes())
