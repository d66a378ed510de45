"""The start and the ending of every command: a parser with one-line errors; an exit code, or one line on stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TextIO

from shards._software import version_of
from shards.errors import UserError
from shards.interrupts import Interrupts, may_be_torchruns, ordered_exit_code
from shards.words import in_words

CLOSED_PIPE = 141  # 128 + SIGPIPE
# seconds; ranks reach the same error at about the same time. fastmoco._packages has a copy: it runs before `shards` is
# known to be this package
PATIENCE = 5.0


class UsageError(UserError):
    """A command line that does not parse."""


def print_version() -> None:
    """Print the version of fastmoco, one for all commands."""
    print(f"fastmoco {version_of('fastmoco')}")


class _Version(argparse.Action):
    """argparse's own would look the version up for every command that starts."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print_version()
        parser.exit()


class _Help(argparse.HelpFormatter):
    """Wraps paragraphs, but not those with indented lines, and never within a flag such as --batch-size."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(p if "\n " in p else "\n".join(self._split_lines(p, width)) for p in paragraphs)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are a UsageError: one line, which `command` prints. It has --version.

    Args:
        prog: The command as users type it.
        examples: Command lines for the end of the help; {prog} stands for the command.
        options: Of argparse.ArgumentParser.

    Attributes:
        other: The last group of the help, with --help and --version.
    """

    def __init__(self, prog: str, *, examples: Sequence[str] = (), add_help: bool = True, **options: Any) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False, formatter_class=_Help, **options)
        self.examples = [example.format(prog=prog) for example in examples]
        self.other = self.add_argument_group("other")
        if add_help:
            self.other.add_argument("-h", "--help", action="help", help="print this help and exit")
            shown = "print the version of fastmoco and exit"
            self.other.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help=shown)

    def format_help(self) -> str:
        """The help: a short usage line, flags in groups, and examples."""
        # argparse's own usage line would list every flag
        required = [action for action in self._actions if action.required]
        names = [" ".join([*action.option_strings, str(action.metavar or action.dest.upper())]) for action in required]
        self.usage = self.usage or " ".join([self.prog, *names, "[flags]"])
        self._action_groups.sort(key=lambda group: group is self.other)
        examples = ["", "examples:", *(f"  {line}" for line in self.examples)] if self.examples else []
        return super().format_help() + "".join(f"{line}\n" for line in examples)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message and where to find help."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse; an unknown flag is answered with known ones that are spelt like it.

        It comes before a missing flag, for which argparse would look first: it may be that flag, misspelt.
        """
        words = sys.argv[1:] if args is None else list(args)
        flags = words[: words.index("--")] if "--" in words else words  # names may begin with a dash behind it
        known = [option for action in self._actions for option in action.option_strings]
        for before, word in zip(["", *flags], flags, strict=False):
            name, equals, value = word.partition("=")
            if word == "" or (name.startswith("--") and equals and not value):
                self.error(f"the value of {name or before or 'an argument'} is empty; give one, or leave it out")
        for word in (word.partition("=")[0] for word in flags if word.startswith("--")):
            if word not in known:
                # without the dashes, which would make any two short flags alike
                close = [f"--{name}" for name in get_close_matches(word[2:], [flag.lstrip("-") for flag in known])]
                self.error(f"unknown flag {word}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
        return super().parse_args(words, namespace)


def command(name: str, run: Callable[[], int | None], interrupted: str = "interrupted") -> NoReturn:
    """Run a command and end the process.

    A UserError, an OSError and a signal (`interrupts.SIGNALS`) become one line on stderr. A closed pipe on stdout ends
    silently. Any other exception is a defect of the program and keeps its traceback.

    Args:
        name: The command as the user typed it, `fastmoco knn`.
        run: The command; returns its exit code, or None for 0.
        interrupted: Message after a signal.

    Raises:
        SystemExit: Always. 2 for an OSError, `exit_code` for a UserError, 128 + its number for a signal, 130 for
            Ctrl-C; under torchrun 0 for a signal.
    """
    stopped = _line(name, interrupted) if os.environ.get("RANK", "0") == "0" else ""
    interrupts = Interrupts(stopped)
    error: BaseException | None = None
    try:
        try:
            interrupts.watch()
            code = _exit_code(run)
            _flush_stdout()
        except BaseException as raised:
            error = raised
            interrupts.leave()
    except KeyboardInterrupt as late:  # a signal after an error, and before `leave` has taken hold
        error = error or late
        interrupts.leave()
    if error is not None:
        # an import or a library may have made another error of a KeyboardInterrupt
        if interrupts.number or isinstance(error, KeyboardInterrupt):
            if not may_be_torchruns(interrupts.number):
                _report(stopped)
            code = ordered_exit_code(interrupts.number or signal.SIGINT)
        else:
            code = _ending(name, error)
        if code is None:
            _record(f"{type(error).__name__}: {error}; its traceback is above")
            raise error
    interrupts.end(code)
    raise SystemExit(code)


def _ending(name: str, error: BaseException) -> int | None:
    """Say in one line what ended a command; its exit code, or None for a defect."""
    if isinstance(error, UserError) and error.stopped_by:  # by agreement of all ranks
        if os.environ.get("RANK", "0") == "0":
            _report(_line(name, str(error)))
        return ordered_exit_code(error.stopped_by)
    if isinstance(error, UserError):
        _say(name, str(error), on_this_rank=error.one_rank, is_cause=not error.consequence)
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # an OSError, so before it
        _discard(sys.stdout)
        return CLOSED_PIPE
    if isinstance(error, OSError):  # a disk or a network may fail on one rank alone
        _say(name, in_words(error), on_this_rank=True)
        return UserError.exit_code
    return None


def _exit_code(run: Callable[[], int | None]) -> Any:
    try:
        return run() or 0
    except SystemExit as end:  # argparse ends --help with it; the closed pipe of `--help | head` is noticed above
        return end.code


def _say(name: str, message: str, on_this_rank: bool, is_cause: bool = True) -> None:
    """Report an error: on rank 0 alone if all ranks fail alike, on this rank if it may be the only one.

    What follows from another rank's error comes after that, or not at all where torchrun ends this rank meanwhile.
    """
    line = _line(_with_rank(name), message)
    if not is_cause and Interrupts.current is not None and Interrupts.current.stopped:
        return  # it was asked to end already, as torchrun does once a rank has failed
    if not is_cause or (os.environ.get("RANK", "0") != "0" and not on_this_rank):
        _let_others_speak()
    if is_cause:
        _record(line.rstrip())
    _report(line)


def _let_others_speak() -> None:
    """Wait until the ranks whose error this rank has or follows from have reported it.

    torchrun ends all ranks once one has ended, this one too. A rank that is still there afterwards is the only one that
    failed, or the first of its node.
    """
    time.sleep(PATIENCE if os.environ.get("LOCAL_RANK", "0") == "0" else 2 * PATIENCE)


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Let torchrun name the cause of an error of the block, as it does for a command, and raise the error.

    Args:
        name: What the block is called in torchrun's report.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and error.consequence:
            _let_others_speak()
        else:
            _record(_line(_with_rank(name), str(error) or type(error).__name__).rstrip())
        raise


def _with_rank(name: str) -> str:
    rank = os.environ.get("RANK", "0")
    return name if rank == "0" else f"{name} (rank {rank})"


def _line(name: str, message: str) -> str:
    # one line, whatever a library's message holds
    return f"{name}: {' '.join(message.splitlines())}\n"


def _report(line: str) -> None:
    stream = sys.stderr
    if stream is None:  # closed by the shell's 2>&-
        return
    try:
        stream.write(line)
        stream.flush()
    except OSError:
        _discard(stream)


def _flush_stdout() -> None:
    """Write what is buffered, so that a closed pipe or a full disk is noticed here, not while Python shuts down."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error


def _discard(stream: TextIO) -> None:
    """Discard what is still buffered, which Python would try to write once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _record(line: str) -> None:
    """Leave a line where torchrun looks for the cause of a rank's end, in the format of torch's own `record`."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        # torchrun names the earliest, in whole seconds, and takes for the time of a rank without a record that at which
        # it noticed its end
        when = {"py_callstack": line, "timestamp": str(int(time.time()) - 1)}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": when}}), encoding="utf-8")
