"""Parsing of a documented command line by the parser of the program that it names, without running it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

from shards.command import Parser
from tests.documented.pages import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:  # a dependency of pytest there
    import tomli as tomllib

ARCHIVES = (".whl", ".tar.gz")


def check(text: str) -> None:
    """Parse a command line.

    Raises:
        UserError, SystemExit, AssertionError: It does not parse, or names something that does not exist.
    """
    for words in _simple_commands(text):
        program, *rest = words
        (_fastmoco if program == "fastmoco" else _CHECKS.get(program, _known_files))(rest)


def unknown_flags(text: str) -> list[str]:
    """The flags of a part of a command line that its program does not have."""
    program, *rest = next(_simple_commands(text))
    if program == "python":
        rest = rest[1:] if rest[0] == "-m" else rest
        program, *rest = rest
    if program not in ("fastmoco", "fastmoco-shard") and not program.startswith(("fastmoco.", "benchmarks/")):
        return []
    parser = parser_for(program, rest)
    known = {option for action in parser._actions for option in action.option_strings}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]


def _simple_commands(text: str):
    """The commands between `&&`, `;` and `|`, without variables before them and redirections behind them."""
    words: list[str] = []
    for word in [*shlex.split(text, comments=True), ";"]:
        if word in ("&&", ";", "|"):
            if words:
                yield words[: words.index(">")] if ">" in words else words
            words = []
        elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
            words.append(word)


def _fastmoco(words: Sequence[str]) -> None:
    name, *rest = words or ("--help",)
    if name.startswith("-"):
        assert name in ("--help", "--version")
        return
    if name in ("train", "detect"):  # whose recipes set defaults
        import_module(f"fastmoco.{name}").parse(_without_files(rest))
        return
    parser_for("fastmoco", words).parse_args([word for word in rest if word != "--help"])


def _without_files(words: Sequence[str]) -> list[str]:
    """The words without files that the parser reads, which are not there, and without those that end the command."""
    before, files = ["", *words], ("--config", "--views")
    dropped = ("--help", "--show", *files)
    return [word for last, word in zip(before, words, strict=False) if word not in dropped and last not in files]


def _shard(words: Sequence[str]) -> None:
    _fastmoco(words if words[0] in ("verify", "info", "index") else ["pack", *words])


def _python(words: Sequence[str]) -> None:
    if words[0] == "-m":
        _module(words[1], words[2:])
    elif words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file(), f"no file {words[0]}"
        if words[0].startswith("benchmarks/"):
            parser_for(words[0], words[1:]).parse_known_args(words[1:])
    else:
        assert words[0] in ("-c", "--version"), f"python {words[0]}"


def _module(module: str, words: Sequence[str]) -> None:
    if module == "fastmoco":
        _fastmoco(words)
    elif module.startswith("fastmoco."):
        _fastmoco([module.removeprefix("fastmoco."), *words])
    elif module in ("pip", "pytest"):
        _CHECKS[module](words)
    elif module.startswith("tests."):
        assert (ROOT / module.replace(".", "/")).exists() or (ROOT / (module.replace(".", "/") + ".py")).exists()
    elif module == "pipelines.sheet":
        _fastmoco(["sheet", *words])
    else:
        assert module in ("build", "venv", "http.server", "tensorboard"), f"python -m {module}"


def _torchrun(words: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(list(words))
    script = ["-m", given.training_script] if given.module else [given.training_script]
    _python([*script, *given.training_script_args])


def _make(words: Sequence[str]) -> None:
    subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)


def _pip(words: Sequence[str]) -> None:
    from pip._internal.commands import create_command

    name, *rest = words
    _, requirements = create_command(name).parse_args(list(rest))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in rest:
        for names in re.findall(r"(?:^|fastmoco|\.|\.whl|\.gz)\[([a-z0-9,-]+)\]", word):
            assert set(names.split(",")) <= set(extras), f"no extra {names}"
    by_name = [word for word in requirements if re.match(r"fastmoco(\[[^]]*\])?($|[=<>])", word)]
    assert not by_name, f"fastmoco is not on PyPI: {by_name}"


def _pytest(words: Sequence[str]) -> None:
    _known_files(words)


def _known_files(words: Sequence[str]) -> None:
    """Files of the repository that are named exist."""
    for word in words:
        path = word.partition("::")[0]
        if path.startswith(("tests/", "benchmarks/", "deploy/", "docs/")):
            assert (ROOT / path).exists(), f"no file {path}"


def parser_for(program: str, words: Sequence[str]) -> Parser:
    from fastmoco.__main__ import COMMANDS, parser_of
    from fastmoco.commandline import parser_of as parser_of_settings

    if program == "fastmoco-shard":
        program, words = "fastmoco", words if words and words[0] in ("verify", "info", "index") else ["pack"]
    if program == "fastmoco":
        assert words[0] in COMMANDS, f"no command fastmoco {words[0]}"
        return parser_of(words[0])
    if program.startswith("fastmoco."):
        return parser_of(program.removeprefix("fastmoco."))
    parser = parser_of_settings(_script(program).Args, program)
    if program == "benchmarks/render.py":
        parser.add_argument("rows", nargs="*")
    if program == "benchmarks/learning.py":
        parser.add_argument("name")
    return parser


def _script(path: str):
    """A benchmark's module."""
    name = path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        try:
            spec = spec_from_file_location(name, ROOT / path)
            assert spec and spec.loader
            sys.modules[name] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(ROOT / "benchmarks"))
    return sys.modules[name]


_CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "fastmoco-shard": _shard,
    "python": _python,
    "torchrun": _torchrun,
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
}

__all__ = ["Parser", "check", "unknown_flags"]
