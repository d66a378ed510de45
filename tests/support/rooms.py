"""The rooms of docs/architecture.md: what imports what, in as few arrows as possible, and the diagram of it.

`python -m tests.support.rooms` draws the page's diagram again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from tests.support.floors import FLOORS, PACKAGES
from tests.support.imports import Floors, Import, read_imports

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"

Arrows = set[tuple[str, str]]
"""(importing room, imported room)"""


def room_of(file: PurePosixPath, floors: Mapping[str, Floors]) -> str:
    """`shards/images` for what is in that folder; `shards base` and `shards top` for the modules beside the folders."""
    package, first, *more = file.parts
    if more:
        return f"{package}/{first}"
    in_base = first.removesuffix(".py") in floors[package].base
    return f"{package} base" if in_base else f"{package} top"


def arrows_between_rooms(imports: Iterable[Import], floors: Mapping[str, Floors]) -> Arrows:
    """Who imports whom, without the arrows that follow from others: A to C where A has one to B, and B one to C."""
    beyond: dict[str, set[str]] = {}
    for each in imports:
        source, target = room_of(each.source, floors), room_of(each.target, floors)
        if source != target and "__init__.py" not in (each.source.name, each.target.name):
            beyond.setdefault(source, set()).add(target)

    def reached(room: str, skipping: str) -> bool:
        """Whether `skipping` is imported by way of another room."""
        waiting = list(beyond.get(room, set()) - {skipping})
        seen = set(waiting)
        while waiting:
            for following in beyond.get(waiting.pop(), set()) - seen:
                seen.add(following)
                waiting.append(following)
        return skipping in seen

    return {(room, other) for room, others in beyond.items() for other in others if not reached(room, other)}


def diagram(arrows: Arrows) -> str:
    """The arrows in Mermaid's notation, as docs/architecture.md has them."""
    rooms = sorted({room for arrow in arrows for room in arrow})
    packages = sorted({_package(room) for room in rooms})
    lines = ["flowchart TD"]
    for package in packages:
        members = [room for room in rooms if _package(room) == package]
        lines += [f"  subgraph {package}", *(f'    {_name(room)}["{room}"]' for room in members), "  end"]
    lines += [f"  {_name(source)} --> {_name(target)}" for source, target in sorted(arrows)]
    return "\n".join(lines)


def arrows_in(text: str) -> Arrows:
    """The arrows of a Mermaid diagram."""
    rooms = dict(re.findall(r'^ *(\w+)\["(.+)"\]$', text, re.M))
    return {(rooms[source], rooms[target]) for source, target in re.findall(r"^ *(\w+) --> (\w+)$", text, re.M)}


def _package(room: str) -> str:
    return re.split(r"[/ ]", room)[0]


def _name(room: str) -> str:
    return re.sub(r"\W", "_", room)


def arrows_of_the_code() -> Arrows:
    """The arrows of this repository."""
    return arrows_between_rooms(read_imports(ROOT, PACKAGES, scripts=("benchmarks",)), FLOORS)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    drawn = f"```mermaid\n{diagram(arrows_of_the_code())}\n```"
    PAGE.write_text(re.sub(r"```mermaid\n.*?```", lambda _: drawn, page, flags=re.S), encoding="utf-8")
