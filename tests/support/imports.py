"""The graph of imports, read from the syntax trees: circles between files and folders, and floors."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Import:
    """One import statement: files relative to the root of the tree, and the line in `source`."""

    source: PurePosixPath
    target: PurePosixPath
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


@dataclass(frozen=True)
class Floors:
    """The order of the folders in a package, from the lowest up.

    Modules of `base` are below every folder, all other modules beside the folders above every one.
    """

    base: frozenset[str]
    folders: tuple[str, ...]

    @classmethod
    def of(cls, base: str, folders: str) -> Floors:
        """Of names with spaces between them."""
        return cls(frozenset(base.split()), tuple(folders.split()))

    def height(self, node: str) -> int:
        """Of a folder, or of a module beside the folders."""
        if node in self.folders:
            return self.folders.index(node) + 1
        return 0 if node in self.base else len(self.folders) + 1


def imported_names(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports and the lines, wherever they are; `from a import b` is both a.b and a.

    Raises:
        ValueError: for a relative import.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{path}:{node.lineno}: relative import")
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def read_imports(root: Path, packages: Iterable[str], scripts: Iterable[str] = ()) -> list[Import]:
    """All imports between the files of some folders of `root`.

    Args:
        root: the folder that the packages' names begin at.
        packages: folders to read.
        scripts: those of the packages whose files are run as scripts, and so import each other without the folder's
            name.
    """
    found = []
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            for name, line in imported_names(path):
                places = [root, root / package] if package in scripts else [root]
                target = next(filter(None, (_file_of(place, name) for place in places)), None)
                if target and target.relative_to(root).parts[0] in packages:
                    source = PurePosixPath(path.relative_to(root).as_posix())
                    found.append(Import(source, PurePosixPath(target.relative_to(root).as_posix()), line))
    return list(dict.fromkeys(found))  # one statement may import several names of a file


def _file_of(place: Path, name: str) -> Path | None:
    """The file that defines a dotted name, which may be a module or what a module holds."""
    for parts in (name.split("."), name.split(".")[:-1]):
        if parts:
            module = place.joinpath(*parts)
            for file in (module.with_suffix(".py"), module / "__init__.py"):
                if file.is_file():
                    return file
    return None


def circles_between_files(imports: Iterable[Import]) -> list[str]:
    """One line for each circle of files, naming its imports."""
    return _circles({(str(each.source), str(each.target)): each for each in imports})


def circles_between_folders(imports: Iterable[Import]) -> list[str]:
    """One line for each circle at any level, where a folder and a module beside it are one node each."""
    levels: dict[PurePosixPath, dict[tuple[str, str], Import]] = {}
    for each in imports:
        for folder in set(each.source.parents) & set(each.target.parents):
            ends = _node(each.source, folder), _node(each.target, folder)
            if ends[0] != ends[1]:
                levels.setdefault(folder, {}).setdefault(ends, each)
    return [f"in {folder}/: {circle}" for folder, arrows in sorted(levels.items()) for circle in _circles(arrows)]


def _node(file: PurePosixPath, folder: PurePosixPath) -> str:
    return file.relative_to(folder).parts[0].removesuffix(".py")


def _circles(arrows: Mapping[tuple[str, str], Import]) -> list[str]:
    """The shortest circle through each node, each circle once."""
    beyond: dict[str, list[str]] = {}
    for source, target in arrows:
        beyond.setdefault(source, []).append(target)
    found: dict[frozenset[str], str] = {}
    for first in sorted(beyond):
        walk = _way_back(beyond, first)
        if walk:
            steps = itertools.pairwise(walk)
            found.setdefault(frozenset(walk), "; ".join(str(arrows[step]) for step in steps))
    return list(found.values())


def _way_back(beyond: Mapping[str, list[str]], first: str) -> list[str] | None:
    """The shortest way from a node to itself."""
    walks, seen = [[first]], set()
    while walks:
        walk = walks.pop(0)
        for node in beyond.get(walk[-1], []):
            if node == first:
                return [*walk, node]
            if node not in seen:
                seen.add(node)
                walks.append([*walk, node])
    return None


def climbing(imports: Iterable[Import], package: str, floors: Floors) -> list[str]:
    """Imports in a package that run from a lower floor to a higher one."""
    folder, found = PurePosixPath(package), []
    for each in imports:
        if folder in each.source.parents and folder in each.target.parents:
            low, high = _node(each.source, folder), _node(each.target, folder)
            if floors.height(low) < floors.height(high):
                found.append(f"{each}: {high} is above {low}")
    return found
