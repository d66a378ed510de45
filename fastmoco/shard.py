"""The command fastmoco-shard, which is `shards.cli`.

It starts here because importing fastmoco finds a foreign package `shards` in the way; `shards.cli` would not be found.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry of the console script."""
    from shards.cli import main

    sys.exit(main())
