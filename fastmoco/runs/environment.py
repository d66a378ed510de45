"""What a run was made with: date, command line, commits, machine and versions, in plain values for config.json.

Environment variables are never recorded: they hold credentials.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("fastmoco", "torch", "torchvision", "numpy", "numba", "Pillow", "simplejpeg", "webdataset"),
    *("nvidia-dali-cuda130", "nvidia-dali-cuda120", "triton"),
)
_SECRET_FLAG = re.compile(r"--[\w-]*(header|token|password|secret|credential|api-?key|notify)[\w-]*", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY = re.compile(r"(\w://[^\s?]+)\?\S+")  # signed URLs carry their signature there


def environment() -> dict[str, Any]:
    """The environment of this process; `cuda` and `gpu` are None where torch sees no GPU."""
    import torch  # here, so that a page about a run is written without it

    gpu = torch.cuda.is_available()
    checkout = _git(Path(__file__).parent, "rev-parse", "--show-toplevel")
    return {
        "date": now(),
        "command": command_line(),
        "commit": commit_of_fastmoco(),
        "project_commit": None if _git(Path.cwd(), "rev-parse", "--show-toplevel") == checkout else commit(Path.cwd()),
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "packages": versions(PACKAGES),
    }


def now() -> str:
    """Date and time in UTC to the second, as ISO 8601 writes them."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command_line() -> str:
    """This process's command line for a shell, without credentials."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    first = [sys.argv[0]]
    if sys.argv[0].startswith("fastmoco "):
        first = sys.argv[0].split()  # by `fastmoco NAME`, as fastmoco.__main__ leaves it
    elif spec is not None:
        first = ["python", "-m", spec.name]  # the first word is the path of the module's file
    return shlex.join(without_secrets([*first, *sys.argv[1:]]))


def without_secrets(words: Iterable[str]) -> list[str]:
    """A command's words without the values of flags such as --header, and without credentials in URLs."""
    kept: list[str] = []
    hide_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = _SECRET_FLAG.fullmatch(name) is not None
        if hide_next and not word.startswith("--"):
            kept.append("***")
            hide_next = False
            continue
        kept.append(f"{name}=***" if secret and equals else redacted(word))
        hide_next = secret and not equals
    return kept


def redacted(text: str) -> str:
    """A text without the user names, passwords and queries of its URLs."""
    return _QUERY.sub(r"\1?***", _USER.sub("***", text))


def shareable(value: Any) -> Any:
    """Plain values whose texts are `redacted`, and without --notify, whose command may hold a webhook's address."""
    if isinstance(value, Mapping):
        return {name: "***" if name == "notify" and each else shareable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cpu_name() -> str:
    """The processor's model."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit_of_fastmoco() -> str | None:
    """The commit of the checkout that this package is run from; None if it is installed."""
    here = Path(__file__).resolve()
    # an installed copy may lie in a virtual environment within the checkout of another project
    return commit(here.parent) if _git(here.parent, "ls-files", "--error-unmatch", here.name) else None


def commit(folder: Path) -> str | None:
    """The commit of the checkout that contains a folder, with `-dirty` if files differ; None outside a checkout."""
    # no tag matches --exclude=*, so a commit has one name whether it is tagged or not
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    # without the lock, git does not write to a checkout that others may be working in
    line = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None
