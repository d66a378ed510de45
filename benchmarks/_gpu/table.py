"""The rows of `gpu_suite.py` as tables, one for each part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from _gpu.parts import PARTS
from _gpu.suite import Row


def markdown(rows: Sequence[Row]) -> str:
    """A heading with the card, the parts with their status, and a table of each part's rows."""
    machine, parts = rows[0], [row for row in rows if "status" in row]
    versions = machine["environment"]["packages"]
    dali = next((f", DALI {version}" for name, version in versions.items() if "dali" in name), ", no DALI")
    lines = [
        f"{machine['card']}, {machine['cores']} cores; torch {versions['torch']}{dali}; {machine['arch']}, batch "
        f"{machine['batch_size']}, {machine['image_size']} pixels; commit {machine['environment']['commit']}, "
        f"{machine['environment']['date']}.",
        "",
        *_table(
            [
                {"part": p["part"], "shows": PARTS[p["part"]].shows, "status": p["status"], "s": p["seconds"]}
                for p in parts
            ]
        ),
    ]
    for part in parts:
        of_part = [row for row in rows if row.get("part") == part["part"] and "status" not in row]
        lines += ["", f"### {part['part']}"] if of_part else []
        for _, alike in groupby(of_part, tuple):  # rows of one part may have different columns
            lines += ["", *_table([{key: value for key, value in row.items() if key != "part"} for row in alike])]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> Iterable[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(name.replace('_', ' ') for name in columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(name)) for name in columns)} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,}"
    return str(value).strip().splitlines()[-1].replace("|", "/")[:160] if str(value).strip() else ""
