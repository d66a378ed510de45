"""Folders of tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from shards.format.manifest import Quarantined
from shards.packing.sources.fields import Fields, unlabelled_text, unnamed_text
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record, Source
from shards.packing.sources.selection import Selection
from shards.packing.sources.tables import CsvSource
from shards.storage.places import joined


class PartsSource(Source):
    """Tables with the same columns in a folder and its sub-folders: the parts that Spark and similar programs write.

    Args:
        place: The folder; a local path or a URL.
        root: Base of relative paths in the tables; None: `place`.
        selection: Which tables and which of their paths are packed.
        table: CsvSource or ParquetSource.
        fields: See CsvSource.
    """

    def __init__(
        self,
        place: str,
        root: str | None,
        selection: Selection,
        table: type[CsvSource],
        fields: Fields,
    ) -> None:
        self.selection = selection
        self.kind = table.kind
        self.place = place
        self.root = place if root is None else root
        self._table = table
        self._fields = fields
        self._unlabelled: Counter[str] = Counter()
        self._unnamed = 0

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from super().notes()
        yield from unlabelled_text(self._unlabelled)
        yield from unnamed_text(self._unnamed)

    def records(self) -> Iterator[Record | Quarantined]:
        """The records of all parts, one part after another."""
        files = NamedFiles(self.place, *self._table.extensions, selection=self.selection)
        for found in files.records():
            if isinstance(found, Quarantined):
                yield found
            else:
                part = joined(self.place, os.fsdecode(found.path))
                table = self._table(part, self.root, self.selection, self._fields)
                yield from table.records()
                self._unlabelled += table.unlabelled
                self._unnamed += table.unnamed
        self.ignored += files.ignored
