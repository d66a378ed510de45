"""Rows of a benchmark in files: written as JSON or CSV, with a table (.md) and a chart (.svg) beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _charts import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = {"variant", "work", "flags", "cpu", "torch", "commit", "date"}
"""Columns of text; a commit such as 12345e67 would pass for a number."""


def show(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row as one line, and return it."""
    values = (f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in row.items())
    print(", ".join(values), flush=True)
    return row


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write rows and what they depend on; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same columns; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        # rows are committed files; the module's default would end their lines in \r\n
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of `write_csv`: numbers are numbers again, None has become an empty string."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: text if key in WORDS else _value(text) for key, text in row.items()}
                for row in csv.DictReader(file)]  # fmt: skip


def _value(text: str) -> str | int | float:
    # int first, so that counts do not become 20.0 in tables
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def write_beside(path: Path, table: str, chart: Figure | None = None) -> None:
    """Write the table and the chart of the rows in `path` to files of the same name."""
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    if chart is not None:
        path.with_suffix(".svg").write_text(svg(chart), encoding="utf-8")
