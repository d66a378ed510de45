"""fastmoco's other packages, `shards` and `pipelines`, and what stands in their way where Python finds others."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

# seconds; torchrun ends all ranks once one has ended: local rank 0 must have printed its line. The same as in
# shards.command, which cannot be imported here: `shards` may be the foreign package that this module looks for
PATIENCE = 5.0
HOME = Path(__file__).absolute().parent.parent
PACKAGES = ("shards", "pipelines")
MARKER = 'PART_OF = "fastmoco"'
"""A line of each package's __init__.py. The folder alone proves nothing: pip unpacks packages of one name into one."""


class ForeignPackageError(ImportError):
    """Another package has the name of one of fastmoco's. The message says where it is and what to do."""


def end_on_interrupt() -> None:
    """As a command, end in one line on Ctrl-C and the like also before `shards.command` is there to handle them."""
    if not _is_command():
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        number = getattr(signal, name, None)
        # not where it is ignored, as in a shell's background job
        if number is not None and signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    # see may_be_torchruns and ordered_exit_code in shards.interrupts
    of_torchrun = "TORCHELASTIC_RESTART_COUNT" in os.environ
    if os.environ.get("LOCAL_RANK", "0") == "0" and not (of_torchrun and number == signal.SIGTERM):
        os.write(2, b"fastmoco: interrupted\n")
    os._exit(0 if of_torchrun else 128 + number)


def check() -> None:
    """Raise ForeignPackageError where `shards` or `pipelines` is not fastmoco's; as a command, end in one line.

    Nothing is imported: each package is found, and the text of its __init__.py is read.
    """
    for name in PACKAGES:
        try:
            spec = find_spec(name)
        except ValueError:  # something without a specification was put into sys.modules
            spec = None
        if spec is None or not _is_ours(spec):
            as_command = _is_command()
            message = _message(name, spec, as_command)
            if as_command:
                _report(f"fastmoco: {message}")
                raise SystemExit(2)
            raise ForeignPackageError(message, name=name)


def _report(line: str) -> None:
    """Print a line, once on each machine, and leave it where torchrun looks for the cause of a rank's end."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE)
        return
    print(line, file=sys.stderr)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        # as shards.command.record, which says why the time is one second earlier
        when = {"py_callstack": line, "timestamp": str(int(time.time()) - 1)}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": when}}), encoding="utf-8")


def _is_ours(spec: ModuleSpec) -> bool:
    try:
        # a folder without __init__.py, which Python takes for a package as well, has an empty source
        source = getattr(spec.loader, "get_source", lambda _: "")(spec.name)
    except ImportError:
        source = None
    if source is None:  # compiled files alone
        return _place(spec) == HOME / spec.name
    return MARKER in source


def _is_command() -> bool:
    """Whether this is `python -m fastmoco`, or `-m fastmoco.SOMETHING`, or one of the console scripts."""
    # argv[0] is `-m` during this import; the scripts are fastmoco and fastmoco-shard, on Windows with .exe
    program = Path(sys.argv[0]).stem if sys.argv else ""
    as_module = program == "-m" and any(word.removeprefix("-m").startswith("fastmoco") for word in sys.orig_argv)
    return as_module or program == "fastmoco" or program.startswith("fastmoco-")


def _message(name: str, spec: ModuleSpec | None, as_command: bool) -> str:
    place = _place(spec)
    if place is None:
        return f"the package {name!r}, which is part of fastmoco, is not found; install fastmoco again"
    return f"{place} hides the package {name!r} of fastmoco, which has the same name; {_remedy(place, as_command)}"


def _place(spec: ModuleSpec | None) -> Path | None:
    """A package's folder, or a module's file."""
    if spec is None or not spec.origin:
        return None
    file = Path(spec.origin).absolute()
    return file.parent if spec.submodule_search_locations else file


def _remedy(place: Path, as_command: bool) -> str:
    folder = place.parent
    if folder == HOME or folder.name in ("site-packages", "dist-packages"):
        return "uninstall the package that it belongs to and install fastmoco again, or use two environments"
    # not sys.path[0], which is the script's folder, or with -m the current one
    if folder in [Path(entry).absolute() for entry in sys.path[1:]]:
        return f"rename it, or remove {folder} from PYTHONPATH"
    if not as_command:  # sys.path[0] is the folder of the user's own script, which may need its other modules
        return "rename it"
    # Python knows PYTHONSAFEPATH since 3.11
    safe = " set PYTHONSAFEPATH=1," if sys.version_info >= (3, 11) else ""
    return f"run from another folder,{safe} or rename it"
