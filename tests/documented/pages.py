"""What the pages show: command lines and Python blocks, found by a Markdown parser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("sh", "bash", "shell", "console")
PROGRAMS = (
    *("fastmoco", "fastmoco-shard", "torchrun", "python", "pytest", "pip", "make", "mkdocs", "tensorboard"),
    *("git", "cd", "mkdir", "eval", "export", "source", "docker", "kubectl", "sbatch"),
)
"""The first word of every command line that a page may show."""


class Shown(NamedTuple):
    """A command line or a block of Python, and the page and line where it is shown."""

    text: str
    page: str
    line: int

    def __str__(self) -> str:
        """As an editor opens it."""
        return f"{self.page}:{self.line}: {self.text}"


def pages() -> list[Path]:
    """README, CONTRIBUTING, docs, and the pages beside the deployment files."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    return sorted(path for path in found if path.name != "CHANGELOG.md")


def command_lines() -> list[Shown]:
    """Every command line of a code block, with its continuation lines, as it is written but for comments."""
    return [shown for page in pages() for shown in _of_page(page)]


def inline_commands() -> list[Shown]:
    """Every command line within a sentence: a code span of a program with flags, or with a module."""
    found = []
    for page in pages():
        for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
            spans = [child.content for child in token.children or () if child.type == "code_inline"]
            line = token.map[0] + 1 if token.map else 0
            found += [Shown(text, _name(page), line) for text in spans if _is_command(text) and " -" in text]
    return found


def python_blocks() -> list[Shown]:
    """Every block marked as Python."""
    blocks = ((page, *block) for page in pages() for block in _blocks(page))
    return [Shown(text, _name(page), line) for page, language, line, text in blocks if language == "python"]


def _of_page(page: Path) -> Iterator[Shown]:
    for language, first, text in _blocks(page):
        joined, begun = "", first
        for number, line in enumerate(text.splitlines(), first):
            begun = begun if joined else number
            joined += line.rstrip().removesuffix("\\") if line.rstrip().endswith("\\") else line
            if line.rstrip().endswith("\\"):
                continue
            command = re.sub(r"\s+#.*$", "", re.sub(r"\s+", " ", joined)).strip()
            joined = ""
            if not command or command.startswith("#"):
                continue
            if _is_command(command):
                yield Shown(command, _name(page), begun)
            elif language in SHELL:
                raise AssertionError(f"{_name(page)}:{begun}: starts with no known program: {command}")


def _blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """Language, number of the first line, and text of each code block; an indented one has the language ""."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block") and token.map:
            yield token.info.strip(), token.map[0] + 1 + (token.type == "fence"), token.content


def _is_command(text: str) -> bool:
    words = text.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    return len(words) > 1 and words[0] in PROGRAMS


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def broken_links() -> list[str]:
    """Links and pictures of a page that lead to no file, or to no heading of a page."""
    broken = []
    for page in [*pages(), ROOT / "CHANGELOG.md"]:
        for target in _targets(page):
            path, _, anchor = target.partition("#")
            aim = (page.parent / path).resolve() if path else page
            made = "reference/" in path  # when the site is built
            if not made and (not aim.exists() or (anchor and aim.suffix == ".md" and anchor not in _anchors(aim))):
                broken.append(f"{_name(page)}: {target}")
    return broken


def _targets(page: Path) -> Iterator[str]:
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if isinstance(target, str) and "://" not in target and not target.startswith("mailto:"):
                yield target
        yield from re.findall(r'(?:src|srcset)="([^"]+)"', token.content if token.type == "html_block" else "")


def _anchors(page: Path) -> set[str]:
    """The headings' anchors, as GitHub and MkDocs form them from words."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [inline.content for head, inline in pairwise(tokens) if head.type == "heading_open"]
    named = re.findall(r'<a id="([^"]+)"', page.read_text(encoding="utf-8"))
    return {*named, *(re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles)}
