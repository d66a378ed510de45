"""The output: what lies in it, who may write to it, what `--overwrite` takes away."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from shards.errors import PackError, ShardSetError
from shards.format.layout import SHARD_FILE
from shards.format.manifest import MANIFEST, NUMBERED, Manifest, parse_manifest
from shards.format.writer import read_record
from shards.packing.lock import locked
from shards.packing.plan import WORK, Plan, read_plan
from shards.storage.base import Store
from shards.storage.files import PARTIAL, PARTIAL_SUFFIX
from shards.words import display

QUARANTINE = "quarantine.jsonl"
_OURS = re.compile(rf"({SHARD_FILE.pattern}|{re.escape(MANIFEST)}|{re.escape(QUARANTINE)})({PARTIAL_SUFFIX})?")
_HARMLESS = re.compile(r"\..*|.*\.pyi?|py\.typed|__pycache__")  # hidden files, modules
_PACKAGE = "__init__.py"


def open_output(store: Store) -> dict[str, int]:
    """The files of a shard set that lie in the output, with their bytes.

    Raises:
        PackError: It cannot be read, or holds other people's files.
    """
    try:
        sizes = store.sizes()
    except OSError as error:
        raise PackError(f"cannot read --out {display(store.url)}: {error.strerror}") from None
    foreign = [
        name for name, size in sizes.items() if _is_foreign(name, is_folder=size < 0, in_package=_PACKAGE in sizes)
    ]
    if foreign:
        shown = ", ".join(display(name) for name in foreign[:3])
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise PackError(
            f"--out {display(store.url)} holds files of something else ({shown}{more}); name an empty folder"
        )
    return {name: size for name, size in sizes.items() if _OURS.fullmatch(name)}


def _is_foreign(name: str, is_folder: bool, in_package: bool) -> bool:
    """Whether a file or folder in the output belongs neither to a shard set nor to a Python package.

    `--out shards/` in a checkout of this repository is the folder of the package `shards`. Modules and, below an
    `__init__.py`, any folders are therefore left in peace: packing creates, replaces and removes files of a set's
    names alone, none of which is a folder or a module.
    """
    if name == WORK or _OURS.fullmatch(name) or _HARMLESS.fullmatch(name):
        return False
    return not (is_folder and in_package)


@contextlib.contextmanager
def held(store: Store) -> Iterator[Callable[[], None]]:
    """Hold the output against other packers; see `locked`.

    Raises:
        PackError: Somebody else holds it (named by process id and host), or it cannot be written.
    """
    made = store.local is not None and not store.local.exists()
    with locked(store) as check:
        try:
            yield check
        finally:
            with contextlib.suppress(OSError):  # a store out of reach: what led here has been said
                if not store.exists(f"{WORK}/plan.json"):
                    finish(store)
                    if made and store.local is not None:
                        store.local.rmdir()  # refused where it is not empty


def read_state(store: Store) -> Plan | Manifest | None:
    """What the set in `store` was packed from: its plan while unfinished, else its manifest.

    Raises:
        OSError: The store cannot be read.
    """
    plan = read_plan(store)
    if plan is not None:
        return plan
    try:
        return parse_manifest(store.read(MANIFEST), f"{store.url}/{MANIFEST}")
    except (FileNotFoundError, ShardSetError):
        return None


def refuse_other(store: Store, plan: Plan, state: Plan | Manifest | None, files: dict[str, int]) -> str:
    """Why `store` cannot be gone on with under `plan`; empty where it can."""
    if state is None:
        tars = [name for name in files if name.endswith(".tar")]
        unknown = [name for name in tars if not _packed_by(store, name, plan)]
        return f"holds {len(unknown):,} tars of an unknown packing ({unknown[0]}, ...)" if unknown else ""
    if isinstance(state, Manifest) and state.keys != NUMBERED:
        raise PackError(f"{display(store.url)} holds tars made by others, which are never replaced; name another --out")
    differences = plan.differences(state.options, state.source)
    return "holds another set: " + "; ".join(differences) if differences else ""


def _packed_by(store: Store, tar: str, plan: Plan) -> bool:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_record(store, int(tar.removesuffix(".tar")[-6:]))[0].plan == plan.identity
    return False


def remove(store: Store, files: dict[str, int]) -> None:
    """Remove the files of a set, its manifest first, and its plan."""
    for name in sorted(files, key=lambda name: name != MANIFEST):
        store.remove(name)
    with contextlib.suppress(FileNotFoundError):
        store.remove(f"{WORK}/plan.json")


def sweep(store: Store) -> None:
    """Remove what processes that were ended left half-written; only who holds the store may."""
    for path in store.scratch.glob(f"*{PARTIAL}"):
        if path.name != WORK and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def finish(store: Store) -> None:
    """Take the plan and the lock away: the set is whole."""
    with contextlib.suppress(FileNotFoundError):
        store.remove(WORK)
    store.close()
