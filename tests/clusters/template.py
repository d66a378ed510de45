"""The files in deploy/ with small changes: each must be found, so that what is run is what is published."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = "tests.endurance.tiny --recipe demo --image-size 32 --batch-size 12 --queue-size 40 --threads 2 --log-every 50"


def changed(file: Path, changes: Mapping[str, str]) -> str:
    """A file's text with changes."""
    text = file.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{file} no longer has {old!r}"
        text = text.replace(old, new)
    return text


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
