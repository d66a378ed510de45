"""The output of a packing: what it may hold, who may write to it, what `--overwrite` removes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from shards.errors import PackError, ShardSetError
from shards.format.layout import SHARD_FILE
from shards.format.manifest import MANIFEST, NUMBERED, QUARANTINE, Manifest
from shards.format.parsing import parse_manifest
from shards.format.writer import read_record
from shards.packing.lock import LOCK, locked
from shards.packing.plan import HEAD, STAGED, WORK, Plan, read_plan
from shards.storage.base import Store
from shards.storage.files import PARTIAL, PARTIAL_SUFFIX
from shards.words import counted, display, human_bytes

_OURS = re.compile(rf"({SHARD_FILE.pattern}|{re.escape(MANIFEST)}|{re.escape(QUARANTINE)})({PARTIAL_SUFFIX})?")
_HARMLESS = re.compile(r"\..*|.*\.pyi?|py\.typed|__pycache__")  # hidden files and Python modules


def open_output(store: Store) -> dict[str, int]:
    """Files of a shard set in the output, with their sizes.

    Raises:
        PackError: The output cannot be read, or holds unrelated files.
    """
    try:
        sizes = store.sizes()
    except OSError as error:
        cause = f"cannot read --out {display(store.url)}: {error.strerror}"
        raise PackError(f"{cause}; name a folder that you may write to" if store.local else cause) from None
    in_package = "__init__.py" in sizes
    foreign = [name for name, size in sizes.items() if _is_foreign(name, size < 0, in_package)]
    if foreign:
        shown = ", ".join(display(name) for name in foreign[:3])
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise PackError(f"--out {display(store.url)} holds unrelated files ({shown}{more}); name an empty folder")
    return {name: size for name, size in sizes.items() if _OURS.fullmatch(name)}


def _is_foreign(name: str, is_folder: bool, in_package: bool) -> bool:
    """Whether a file or folder in the output belongs neither to a shard set nor to a Python package.

    In a checkout of this repository `--out shards/` is the folder of the package `shards`. Modules are therefore
    accepted, and in a folder with an `__init__.py` all sub-folders too. That is safe: packing creates, replaces and
    removes only names of a set's files, none of which a module or folder has.
    """
    if name == WORK or _OURS.fullmatch(name) or _HARMLESS.fullmatch(name):
        return False
    return not (is_folder and in_package)


@contextlib.contextmanager
def held(store: Store) -> Iterator[Callable[[], None]]:
    """Lock the output against other packers; see `locked`.

    Raises:
        PackError: Another packer holds it (the message gives process id and host), or it cannot be written.
    """
    made = store.local if store.local is not None and not store.local.exists() else None
    try:
        with locked(store) as check:
            try:
                yield check
            finally:
                with contextlib.suppress(OSError):  # an unreachable store: the first error is on its way already
                    # nothing to continue: leave no trace
                    if not any(name == HEAD or name.startswith(STAGED) for name in store.names(WORK)):
                        finish(store)
    finally:
        if made is not None:
            with contextlib.suppress(OSError):  # it is not empty, as it should be
                made.rmdir()


def read_state(store: Store) -> Plan | Manifest | None:
    """What the set in `store` was packed from: its plan if unfinished, else its manifest.

    Raises:
        OSError: The store cannot be read.
    """
    # The plan first: while a set is being repaired it has both, and they describe the same packing. But for a plan of
    # images that are being appended, whose set is complete.
    plan = read_plan(store)
    if plan is not None and not plan.base:
        return plan
    try:
        return parse_manifest(store.read(MANIFEST), f"{store.url}/{MANIFEST}")
    except (FileNotFoundError, ShardSetError):
        return None


def refuse_other(store: Store, plan: Plan, state: Plan | Manifest | None, files: dict[str, int]) -> str:
    """Why the packing of `plan` cannot continue in `store`; empty if it can."""
    if state is None:
        tars = [name for name in files if name.endswith(".tar")]
        unknown = [name for name in tars if not _packed_by(store, name, plan)]
        return f"holds {len(unknown):,} tars of an unknown packing ({unknown[0]}, ...)" if unknown else ""
    if isinstance(state, Manifest) and state.keys != NUMBERED:
        raise PackError(f"{display(store.url)} holds indexed tars, which are never replaced; name another --out")
    differences = plan.differences(state.options, state.source)
    return "holds another set: " + "; ".join(differences) if differences else ""


def _packed_by(store: Store, tar: str, plan: Plan) -> bool:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_record(store, int(tar.removesuffix(".tar")[-6:]))[0].plan == plan.identity
    return False


def remove(store: Store, files: dict[str, int]) -> None:
    """Remove the files of a set, its manifest first, and its plan."""
    # Without a manifest it is no longer a set, so nobody opens it while its shards are removed.
    for name in sorted(files, key=lambda name: name != MANIFEST):
        store.remove(name)
    with contextlib.suppress(FileNotFoundError):
        store.remove(f"{WORK}/plan.json")


def replace(store: Store, files: dict[str, int], say: Callable[[str], None]) -> None:
    """`remove` the files of a set that --overwrite replaces, and say so."""
    say(f"--overwrite: removing {counted(len(files), 'file')} ({human_bytes(sum(files.values()))}) of that set")
    remove(store, files)


def sweep(store: Store) -> None:
    """Remove unfinished files of dead processes; only the holder of the lock may do so."""
    for path in store.scratch.glob(f"*{PARTIAL}"):
        if path.name != WORK and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def finish(store: Store) -> None:
    """Remove the plan and what belongs to it: the set is complete. The lock remains its holder's to remove."""
    for name in sorted(store.names(WORK), key=lambda name: name != HEAD):  # the plan first: nothing to continue
        if f"{WORK}/{name}" != LOCK:
            store.remove(f"{WORK}/{name}")
    store.close()
