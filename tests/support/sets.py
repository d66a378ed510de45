"""Small packed sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards import PackOptions, pack


def pack_set(src: Path, out: Path, **options: Any) -> Path:
    """Pack `src` into `out` with one worker and no progress bar; `options` are those of PackOptions."""
    pack(PackOptions(src=src, out=out, **{"workers": 1, **options}), progress=False)
    return out
