"""Shell completion of the command `fastmoco`: commands, flags, their values, and files."""

from __future__ import annotations

import argparse

from shards.command import Parser, command
from shards.errors import UserError

NAME = "fastmoco completion"
SHELLS = ("bash", "zsh", "fish")
# these take a name or a URL as well, so their help does not say PATH
_FILES = {"checkpoint", "init", "resume", "train", "val"}


def main() -> None:
    """Entry of the command."""
    command(NAME, lambda: print(script(parser().parse_args().shell)))


def parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        NAME,
        description="Print the script with which a shell completes commands, flags, their values, and files.",
        examples=(
            'eval "$({prog} bash)"',
            '{prog} zsh > "${{fpath[1]}}/_fastmoco"',
            "{prog} fish > ~/.config/fish/completions/fastmoco.fish",
        ),
        epilog="bash: put the line with eval into ~/.bashrc. zsh and fish: write the file, and start a new shell.",
    )
    parser.add_argument_group("script").add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return parser


def script(shell: str) -> str:
    """The script that completes fastmoco in a shell."""
    try:
        import shtab
    except ImportError as error:  # the installed fastmoco is older than this source tree
        raise UserError("shell completion needs shtab: pip install 'shtab>=1.10'") from error
    return shtab.complete(whole_parser(), shell=shell)


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands, whose flags know their values and which of them are files."""
    import shtab

    from fastmoco.__main__ import COMMANDS
    from fastmoco.__main__ import parser_of as parser_of_command

    whole = argparse.ArgumentParser("fastmoco")
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers()
    for name, row in COMMANDS.items():
        own = parser_of_command(name)
        for action in own._actions:
            action.choices = action.choices or _known(name, action.dest)
            if action.metavar == "PATH" or action.dest in _FILES:
                action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        commands.add_parser(name, help=row.summary, description=row.summary, parents=[own], add_help=False)
    return whole


def _known(name: str, flag: str) -> tuple[str, ...] | None:
    """Values of a flag that takes names, which the commands themselves check with messages of their own."""
    from fastmoco.architectures import ARCHITECTURES, MOCO_V3
    from fastmoco.detection.settings import RECIPES as DETECTION
    from fastmoco.recipes import RECIPES

    if flag == "arch":
        return ARCHITECTURES if name == "detect" else ARCHITECTURES + MOCO_V3
    if flag == "recipe":
        return tuple(DETECTION if name == "detect" else RECIPES)
    return None


if __name__ == "__main__":
    main()
