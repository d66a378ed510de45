"""Every command line and Python block of README and docs: parsed by the program's own parser, and some of them run.

`python -m tests.documented` (`make test-long`) runs all of them.
"""

from __future__ import annotations

import ast
import re

import pytest

from tests.documented.changes import changed, unused
from tests.documented.pages import (
    PROGRAMS,
    ROOT,
    Shown,
    broken_links,
    command_lines,
    inline_commands,
    pages,
    python_blocks,
)
from tests.documented.parsing import check, unknown_flags
from tests.documented.running import Workplace

LINES = command_lines()


def test_the_three_commands_and_every_command_of_fastmoco_are_shown():
    from fastmoco.__main__ import COMMANDS

    shown = [one.text for one in LINES]
    assert "fastmoco-shard --src imagenet/ --out shards/" in shown
    named = {found[1] for text in shown for found in re.finditer(r"\bfastmoco (\w+)", text)}
    assert set(COMMANDS) <= named


@pytest.mark.parametrize("page", sorted({one.page for one in LINES}))
def test_every_line_of_a_page_parses_as_it_is_written_and_as_it_is_run(page):
    for shown in (one for one in LINES if one.page == page):
        for text in {shown.text, changed(shown.text) or shown.text}:
            try:
                check(text)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{shown}\nas it is run: {text}") from error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fastmoco train --shard shards/", "did you mean --shards"),
        ("torchrun --nproc-per-node 2 -m fastmoco train --epochs none", "--epochs"),
        ("python -m fastmoco.knn --checkpoint a --train b", "--val"),
        ("fastmoco sheat --shards a", "no command fastmoco sheat"),
        ("python benchmarks/nothing.py", "no file"),
        ("make nothing", "nothing"),
        ("pip install -e '.[nothing]'", "no extra {'nothing'}|no extra nothing"),
        ("pip install fastmoco", "not on PyPI"),
    ],
)
def test_a_line_that_does_not_parse_is_found(text, says):
    with pytest.raises((Exception, SystemExit)) as caught:
        check(text)
    assert re.search(says, f"{caught.value} {getattr(caught.value, 'stderr', '')}")


def test_flags_within_sentences_exist():
    assert not {str(shown): flags for shown in inline_commands() if (flags := unknown_flags(shown.text))}
    assert unknown_flags("fastmoco train --nonsense 3") == ["--nonsense"]


def test_no_command_is_hidden_from_these_tests():
    """A command in an indented line that Markdown takes for text would be neither shown as code nor parsed."""
    found = {(one.page, one.line) for one in LINES}
    continued = {(one.page, one.line + 1) for one in LINES}
    for page in pages():
        fence = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            fence ^= line.lstrip().startswith("```")
            word = line.split()[0] if line.startswith("    ") and line.split() else ""
            if word in PROGRAMS and not fence:
                place = (page.name if page.name.isupper() else page.as_posix(), number)
                assert any(place[0].endswith(name) and at == number for name, at in found | continued), place


def test_every_change_is_needed_by_a_line():
    assert not unused([one.text for one in LINES])
    assert changed("fastmoco verify set/") == "fastmoco verify set/"  # a line without an entry runs as it is
    assert changed("docker build .") is None


@pytest.mark.parametrize("block", python_blocks(), ids=lambda one: f"{one.page}:{one.line}")
def test_a_python_block_parses_and_its_imports_and_names_exist(block: Shown):
    import importlib

    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("fastmoco", "shards", "pipelines"):
            assert hasattr(importlib.import_module(ast.unparse(node.value)), node.attr), ast.unparse(node)


def test_the_first_lines_of_the_page_on_packing_run_as_they_are_written(tmp_path):
    place = Workplace(tmp_path)
    lines = [one for one in LINES if one.page == "docs/how-to/pack.md" and re.search(r" set/( |$)", one.text)]
    results = [place.run(one) for one in lines if "sheet" not in one.text]
    assert [result.ran for result in results] == [one.text for one in lines if "sheet" not in one.text]
    assert len(results) >= 4 and not [result.output for result in results if result.code]
    assert (place.folder / "set" / "manifest.json").exists()


def test_links_lead_to_files_and_headings():
    """`make docs` checks the links of the site too, and needs MkDocs."""
    assert not broken_links()


def test_the_page_on_installing_has_every_extra():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", project.partition("\n[")[0], re.M))
    rows = re.findall(r"^\| (`.+`) \|", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == extras
