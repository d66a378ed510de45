"""fastmoco-shard: pack a folder of images; verify and describe what was packed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shards._arguments import Parser, pack_parser
from shards.errors import PackError, SampleError, ShardSetError
from shards.files import counted, display
from shards.options import PackOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the console script; the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    commands = {"verify": _verify, "info": _info}
    command = commands.get(arguments[0]) if arguments else None
    try:
        return command(arguments[1:]) if command else _pack(arguments)
    except (PackError, ShardSetError, SampleError) as error:
        print(f"fastmoco-shard: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastmoco-shard: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _pack(arguments: Sequence[str]) -> int:
    from shards.packing import pack
    from shards.preview import preview

    parser = pack_parser()
    if arguments and not arguments[0].startswith("-"):
        parser.error(f"no such command: {arguments[0]!r}; the commands are verify and info")
    options = PackOptions(**vars(parser.parse_args(arguments)))
    if options.dry_run:
        print(*preview(options)[1], sep="\n")
    else:
        pack(options)
    return 0


def _path_parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"fastmoco-shard {command}", description=description, allow_abbrev=False)
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a shard set")
    return parser


def _verify(arguments: Sequence[str]) -> int:
    from shards.reader import ShardSet
    from shards.verify import verify

    parser = _path_parser(
        "verify",
        "Compare tars, indexes and records of a set with the checksums taken when it was packed."
        " Exit code 0: all as packed; 1: something differs, and each line says which file and key.",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads (default: one per core)")
    parsed = parser.parse_args(arguments)
    if parsed.workers < 0:
        parser.error(f"--workers {parsed.workers} is negative")
    shard_set = ShardSet(parsed.path)
    problems = 0
    for found in verify(shard_set, parsed.workers or os.cpu_count() or 1):
        for problem in found:
            print(problem, flush=True)
        problems += len(found)
    if problems:
        print(f"{counted(problems, 'problem')} in {display(str(parsed.path))}")
        return 1
    shards = counted(len(shard_set.manifest.records), "shard")
    print(f"{counted(len(shard_set), 'image')} in {shards}: all as packed")
    return 0


def _info(arguments: Sequence[str]) -> int:
    from shards.info import describe
    from shards.reader import ShardSet

    parser = _path_parser("info", "Totals, classes, sizes and options of a packed set.")
    for line in describe(ShardSet(parser.parse_args(arguments).path)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
