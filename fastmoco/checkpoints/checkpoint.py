"""Checkpoints, read: tensors and plain values only.

Layout of a checkpoint (a dictionary): `format`, `config`, `data` {digest, samples}, `progress` {epoch, step,
samples, window}, `query_encoder`, `key_encoder` (not with the memory bank), `queue` or `memory_bank` (neither with
end-to-end), `optimiser`, `scaler`. No random generator's state is kept: order, views, shuffles and the memory bank's
draws are pure functions of the seed and the step. `sha256` is the hash of all this (`checkpoints/content.py`); files of
earlier versions lack it.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastmoco.checkpoints.archives import check
from fastmoco.checkpoints.content import matches
from fastmoco.checkpoints.finite import first_not_finite
from fastmoco.checkpoints.pickled_parts import Refused, Unknown
from shards.errors import PrintableError, UserError
from shards.storage.places import url_in

log = logging.getLogger(__name__)

FORMAT = "fastmoco-checkpoint/1"
Changed = Mapping[str, tuple[Any, Any]]
"""Values that differ, by name: the old one and the new one."""
_NAME = re.compile(r"step-(\d{8})\.pt")
_UNSURE = ".unsure.pt"
_BEFORE = "use the checkpoint before it, if there is one"
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST = 200  # letters of a value in a message
MOST_STEPS = 10**8 - 1  # that the names have digits for


_REFUSED = re.compile(r"GLOBAL ([\w.]+) was not an allowed")  # in the error of torch.load


class CheckpointError(PrintableError):
    """A checkpoint that cannot be used. The message names the file, the reason and a remedy."""


class ForeignObject(CheckpointError):
    """A file holds an object that is no tensor or plain value.

    Attributes:
        held: its class or function, as `omegaconf.dictconfig.DictConfig`.
    """

    def __init__(self, path: Path, held: str) -> None:
        super().__init__(f"{path} cannot be read: it holds {held}, which is no tensor or plain value")
        self.held = held


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the newest first; raises OSError for a folder that cannot be read."""
    # eight digits, so that the order of the names is that of the steps
    return sorted((folder / name for name in _names(folder) if is_name(name)), reverse=True)


def is_name(name: str) -> bool:
    """Whether a file of this name is a checkpoint."""
    return _NAME.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name, whether it was set aside or not."""
    return int(path.name.removeprefix("step-").partition(".")[0])


def steps_done(folder: Path) -> int:
    """Steps that the newest checkpoint of a folder has behind it, by its name; 0 without one."""
    paths = found(folder)
    return step_of(paths[0]) if paths else 0


def set_aside(folder: Path, after: int) -> list[Path]:
    """Rename the checkpoints of steps after `after`, so that no run continues from them; their new paths."""
    moved = []
    for path in found(folder):
        if step_of(path) > after:
            moved.append(path.replace(path.with_suffix(_UNSURE)))
    return moved


def unsure(folder: Path) -> list[Path]:
    """Checkpoints that were set aside."""
    return sorted(folder / name for name in _names(folder) if name.startswith("step-") and name.endswith(_UNSURE))


def _names(folder: Path) -> list[str]:
    """Names in a folder; none without one.

    Not by glob, which finds nothing in a folder that cannot be read: a run would begin again in place of its end.
    """
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def newest_of(path: Path) -> Path:
    """The newest checkpoint where `path` is the folder of a run, or of its checkpoints; any other path unchanged.

    Raises:
        CheckpointError: the folder has no checkpoints.
    """
    if not path.is_dir():
        return path
    paths = found(path / "checkpoints") or found(path)
    if not paths:
        held = next(iter(sorted(path.glob("*.safetensors"))), None)  # as a folder for the Hugging Face hub has
        remedy = "give a file, or the folder of a run" if held is None else f"give its file {held}"
        raise CheckpointError(f"{path} is a folder without checkpoints; {remedy}")
    return paths[0]


def read(path: Path, whole: bool = True) -> Any:
    """What a file of torch.save holds, on the CPU; no code in it is run, and no more is allocated than it has bytes.

    Args:
        path: the file.
        whole: read and check everything; else the tensors are mapped to the file, unread and unchecked.

    Raises:
        CheckpointError: it is missing or damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(_no_file(path))
    try:
        with path.open("rb") as file:
            start = file.read(2)
        # torch.save writes a zip archive, before torch 1.6 a pickle. The unpickler would run any other file's bytes as
        # opcodes, which may end in any exception.
        if start and start != b"PK" and start[:1] != pickle.PROTO:
            raise pickle.UnpicklingError(f"the file begins with {start!r}")
        check(path, whole)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=not whole)
    except pickle.UnpicklingError as error:  # torch's own message is about how to run the code in the file
        held = _REFUSED.search(str(error))
        reason = "it was not written by torch.save, or holds more than tensors and plain values"
        if held is not None:
            raise ForeignObject(path, held[1]) from error
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    except Unknown as error:
        raise ForeignObject(path, error.held) from error
    except Refused as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (RuntimeError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    except Exception as error:  # damaged bytes may end the unpickler, or a decompression, in an exception of any type
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read: it is damaged ({reason}), copy it again") from error


def _no_file(path: Path) -> str:
    url = url_in(path)
    if url is not None:
        return f"{url} is a URL; copy it to a local disk, and give that file"
    return f"{path} is a folder; give a file" if path.is_dir() else f"there is no file {path}; check the path"


class Unfit(CheckpointError):
    """A checkpoint that was read, but does not hold the state of the run: a part is missing, or of another shape."""


def load(path: Path, layout: str = FORMAT) -> dict[str, Any]:
    """Read one checkpoint of the format `layout` onto the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give the path of a step-XXXXXXXX.pt")
    try:
        state = read(path)
    except CheckpointError as error:
        named = _NAME.fullmatch(path.name)  # a file of another name may never have been a checkpoint
        remedy = _BEFORE if named else "give the path of a step-XXXXXXXX.pt"
        raise CheckpointError(f"{error}; {remedy}") from error
    if not isinstance(state, dict) or state.get("format") != layout:
        raise CheckpointError(f"{path} is not a checkpoint of this program ({layout}); give one that it wrote")
    try:
        unchanged, step = matches(state), step_in(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds what no checkpoint does: {error}; {_BEFORE}") from error
    if not unchanged:
        raise CheckpointError(f"{path} is damaged: its content differs from its hash; {_BEFORE}")
    named = _NAME.fullmatch(path.name)
    if named and step != int(named[1]):
        raise CheckpointError(f"{path} holds step {step}, not that of its name; {_BEFORE}")
    return state


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn a failure to load a checkpoint's state into the error of a checkpoint whose content is damaged."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unfit(
            f"{path} does not hold the state of a whole run ({type(error).__name__}: {reason}); {_BEFORE}"
        ) from error


def step_in(state: dict[str, Any]) -> int:
    """The number of steps that a checkpoint says it has behind it.

    Raises:
        ValueError: it says none, or one that no run can have.
    """
    progress = state.get("progress")
    step = progress.get("step") if isinstance(progress, dict) else None
    if type(step) is not int or not 0 <= step <= MOST_STEPS:
        raise ValueError(f"its step is {_given(step)}")
    return step


def newest(folder: Path, layout: str = FORMAT, finite: bool = True) -> tuple[Path, dict[str, Any]] | None:
    """The first of `sound`, or None if the folder has no checkpoints."""
    return next(sound(folder, layout, finite), None)


def sound(folder: Path, layout: str = FORMAT, finite: bool = True) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and content of the sound checkpoints of a folder, the newest first.

    One that is damaged, or with `finite` has a value that is not finite, is reported and left out. If none is left,
    CheckpointError is raised: a run that started from the beginning would in time replace them.
    """
    paths = found(folder)
    for path in paths:
        try:
            state = load(path, layout)
            name = first_not_finite(state) if finite else None
            if name is not None:
                raise CheckpointError(
                    f"{path} is not sound: {name} is infinite or not a number; the one before it is used"
                )
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        yield path, state
    if paths:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read, of {len(paths)} tried; move them away, or choose another --out"
        )


def differences(recorded: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """The values of `current` that were recorded otherwise, each as `NAME was X, now Y`."""
    return in_words({name: (recorded.get(name), now) for name, now in current.items() if recorded.get(name) != now})


def in_words(changed: Changed) -> list[str]:
    """Old and new values as text, each as `NAME was X, now Y`."""
    return [f"{name} was {_given(before)}, now {_given(now)}" for name, (before, now) in changed.items()]


def _given(value: Any) -> str:
    if isinstance(value, str) and _HASH.fullmatch(value):
        return value[:12]  # of a set or an encoder, as everywhere
    text = "not given" if value is None else repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"  # a damaged file may hold anything


def check_identity(path: Path, recorded: dict[str, Any], current: dict[str, Any], what: str) -> None:
    """Raise CheckpointError if a checkpoint was made under other settings.

    Args:
        path: the checkpoint.
        recorded: what decides the run's weights, as the checkpoint has it.
        current: the same now.
        what: the kind of run, for the message.
    """
    differing = differences(recorded, current)
    if differing:
        raise CheckpointError(f"{path} is of another {what}: {'; '.join(differing)}. Choose another --out")
