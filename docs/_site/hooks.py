"""Hooks of MkDocs: the pages that are made from code, rows and files outside docs/, and the links to those files.

README is the site's home, so that there is one text. Flags come from the commands' parsers, functions from `__all__`.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_site")]

import reference  # noqa: E402

from tests import trust  # noqa: E402

TUTORIALS = ("quickstart", "python", "photos", "own-data", "imagenet", "billion", "detection")
"""The first ones, in this order; others follow in the order of their names."""

MOVED = {f"{name}.md": f"{name.lower()}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")} | {
    "README.md": "index.md"
}
"""Pages outside docs/, and their names in the site."""

_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)|((?:src|srcset|href)=\")([^\"#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made at build time, and list the tutorials, how-to guides and commands."""
    for source, text in _made_pages():
        files.append(File.generated(config, _in_site(source), content=text))
    for path in sorted((ROOT / "benchmarks" / "results").iterdir()):
        if path.suffix == ".md":
            text = f"# {path.stem.replace('_', ' ')}\n\n{path.read_text(encoding='utf-8')}"
            files.append(File.generated(config, f"results/{path.name}", content=text))
        else:
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "CITATION.cff", abs_src_path=str(ROOT / "CITATION.cff")))
    for path in (ROOT / "docs").rglob("*.ipynb"):
        name = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=_notebook(path)))
    _fill(config.nav, "Tutorials", _in_folder(files, "tutorials", TUTORIALS))
    _fill(config.nav, "How-to guides", _in_folder(files, "how-to"))
    _fill(config.nav, "Commands", [f"reference/commands/fastmoco-{name}.md" for name in reference.commands()])
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at the places that files outside docs/ have in the site, and fill in the table of trust."""
    here = page.file.src_uri
    if here == "trust.md":
        markdown = markdown.replace("<!-- claims -->", trust.as_markdown())
    source = next((old for old, new in MOVED.items() if new == here), None)
    if source is None:
        source = here.replace("results/", "benchmarks/results/", 1) if here.startswith("results/") else f"docs/{here}"

    def moved(found: re.Match[str]) -> str:
        before, target = found[1] or found[3], found[2] or found[4]
        if ":" in target:
            return found[0]
        aim = _in_site(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        return before + posixpath.relpath(aim, posixpath.dirname(here) or ".")

    return _LINK.sub(moved, _pictures(markdown))


def _made_pages() -> Iterator[tuple[str, str]]:
    """Path in the repository, or in docs/, and text."""
    for name in MOVED:
        yield name, (ROOT / name).read_text(encoding="utf-8")
    for name in reference.commands():
        yield f"docs/reference/commands/fastmoco-{name}.md", reference.command_page(name)
    yield "docs/reference/benchmarks.md", reference.benchmarks_page()
    yield "docs/reference/python.md", reference.python_page()


def _in_site(path: str) -> str:
    """The place in the site of a path in the repository."""
    if path.startswith("benchmarks/results/"):
        return path.removeprefix("benchmarks/")
    return MOVED.get(path, path.removeprefix("docs/").replace(".ipynb", ".md"))


def _in_folder(files: Files, folder: str, first: tuple[str, ...] = ()) -> list[str]:
    def place(path: str) -> tuple[int, str]:
        stem = Path(path).stem
        return (first.index(stem) if stem in first else len(first), path)

    return sorted({f.src_uri for f in files if re.fullmatch(rf"{folder}/[^/]+\.md", f.src_uri)}, key=place)


def _fill(nav: Any, title: str, pages: list[str]) -> None:
    for entry in nav:
        for name, below in entry.items() if isinstance(entry, dict) else ():
            if name == title:
                entry[name] = pages
            elif isinstance(below, list):
                _fill(below, title, pages)


def _pictures(text: str) -> str:
    """A <picture> of two files as the theme has it: the site's own switch decides, not the system's setting alone."""
    pattern = r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    pattern += r'<img src="([^"]+)" alt="([^"]+)"[^>]*>\s*</picture>'
    return re.sub(pattern, r"![\3](\2#only-light) ![\3](\1#only-dark)", text)


def _notebook(path: Path) -> str:
    """A notebook as Markdown: its text and its code, without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"This page is the notebook `docs/{path.relative_to(ROOT / 'docs').as_posix()}`."])
