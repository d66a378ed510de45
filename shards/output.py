"""The output folder: what lies in it, who may write to it, what `--overwrite` takes away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from shards.errors import PackError, ShardSetError
from shards.files import PARTIAL, display
from shards.index import SHARD_FILE
from shards.manifest import MANIFEST, NUMBERED, Manifest, read_manifest
from shards.plan import WORK, Plan, read_plan
from shards.writer import read_record

QUARANTINE = "quarantine.jsonl"
_OURS = re.compile(rf"({SHARD_FILE.pattern}|{re.escape(MANIFEST)}|{re.escape(QUARANTINE)})({re.escape(PARTIAL)})?")
# Hidden files, and a Python package of the folder's name: `--out shards/` in a checkout of this repository.
_HARMLESS = re.compile(r"\..*|.*\.pyi?|py\.typed|__pycache__")


def open_output(out: Path) -> list[Path]:
    """The files of a shard set that lie in the output folder.

    Raises:
        PackError: It cannot be read, or holds other people's files.
    """
    try:
        names = sorted(os.listdir(out)) if out.exists() else []
    except OSError as error:
        raise PackError(f"cannot read --out {display(str(out))}: {error.strerror}") from None
    foreign = [n for n in names if n != WORK and not _OURS.fullmatch(n) and not _HARMLESS.fullmatch(n)]
    if foreign:
        shown = ", ".join(display(name) for name in foreign[:3])
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise PackError(
            f"--out {display(str(out))} holds files of something else ({shown}{more}); name an empty folder"
        )
    return [out / name for name in names if _OURS.fullmatch(name)]


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the output folder against other packers.

    Raises:
        PackError: Somebody else holds it (named by process id and host), or it cannot be written.
    """
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        file = open(out / WORK / "lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise PackError(f"cannot write to --out {display(str(out))}: {error.strerror}") from None
    with file:
        _lock(file, out)
        try:
            yield
        finally:
            if not (out / WORK / "plan.json").exists():
                finish(out)


def _lock(file: TextIO, out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = not (out / WORK / "lock").exists() or not os.path.samestat(
            os.stat(out / WORK / "lock"), os.fstat(file.fileno())
        )
    except BlockingIOError:
        taken = True
    except OSError:
        taken = False  # a file system without locks
    if taken:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise PackError(f"{display(str(out))} is being packed by {holder}; wait for it or end it")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def read_state(out: Path) -> Plan | Manifest | None:
    """What the set in `out` was packed from: its plan while unfinished, else its manifest."""
    plan = read_plan(out)
    if plan is not None:
        return plan
    try:
        return read_manifest(out / MANIFEST)
    except (OSError, ShardSetError):
        return None


def refuse_other(out: Path, plan: Plan, state: Plan | Manifest | None, files: list[Path]) -> str:
    """Why `out` cannot be gone on with under `plan`; empty where it can."""
    if state is None:
        tars = [path for path in files if path.suffix == ".tar"]
        unknown = [path.name for path in tars if not _packed_by(path, plan)]
        return f"holds {len(unknown):,} tars of an unknown packing ({unknown[0]}, ...)" if unknown else ""
    if isinstance(state, Manifest) and state.keys != NUMBERED:
        raise PackError(f"{display(str(out))} holds tars made by others, which are never replaced; name another --out")
    differences = plan.differences(state.options, state.source)
    return "holds another set: " + "; ".join(differences) if differences else ""


def _packed_by(tar: Path, plan: Plan) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return read_record(tar.with_suffix(".json"))[0].plan == plan.identity
    return False


def remove(out: Path, files: list[Path]) -> None:
    """Remove the files of a set, its manifest first, and its plan."""
    for path in sorted(files, key=lambda path: path.name != MANIFEST):
        path.unlink()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(out / WORK / "plan.json")


def finish(out: Path) -> None:
    """Take the plan and the lock away: the set is whole."""
    shutil.rmtree(out / WORK, ignore_errors=True)
