"""fastmoco-shard: pack images; index tars of other programs; verify and describe shard sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from shards.command import Parser, command
from shards.packing.arguments import pack_parser
from shards.packing.options import MAX_WORKERS, PackOptions
from shards.storage.places import is_url, local
from shards.words import counted, display

# Each command imports what it runs with after its flags are checked: a mistake is answered at once.

INTERRUPTED = "interrupted; run the same command again to continue"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry of the console script fastmoco-shard: its commands are verify, info and index; without one it packs."""
    words = sys.argv[1:] if arguments is None else arguments
    command("fastmoco-shard", lambda: run(words), INTERRUPTED)


def run(arguments: Sequence[str]) -> int:
    """Run a command of fastmoco-shard and return its exit code.

    Raises:
        UserError: The command failed for a reason that the user can mend.
        SystemExit: A flag is wrong, or help was requested.
    """
    commands = {"verify": (_verify, verify_parser), "info": (_info, info_parser), "index": (_index, index_parser)}
    name = arguments[0] if arguments else ""
    if name in commands:
        run_it, parser_of = commands[name]
        return run_it(parser_of(f"fastmoco-shard {name}"), arguments[1:])
    parser = pack_parser("fastmoco-shard")
    # Packing has no name of its own here, and takes no positional arguments: a first word is a misspelt command.
    if name and not name.startswith("-"):
        parser.error(f"no such command: {name!r}; the commands are verify, info and index")
    return _pack(parser, arguments)


def pack() -> NoReturn:
    """Entry of `fastmoco pack`."""
    command("fastmoco pack", lambda: _pack(pack_parser(), sys.argv[1:]), INTERRUPTED)


def verify() -> NoReturn:
    """Entry of `fastmoco verify`."""
    command("fastmoco verify", lambda: _verify(verify_parser(), sys.argv[1:]))


def info() -> NoReturn:
    """Entry of `fastmoco info`."""
    command("fastmoco info", lambda: _info(info_parser(), sys.argv[1:]))


def index() -> NoReturn:
    """Entry of `fastmoco index`."""
    command("fastmoco index", lambda: _index(index_parser(), sys.argv[1:]), INTERRUPTED)


def _pack(parser: Parser, arguments: Sequence[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        parser.error(f"unexpected {arguments[0]!r}; give the images by --src {arguments[0]}")
    options = PackOptions(**vars(parser.parse_args(arguments)))
    options.validate()
    if options.dry_run:
        from shards.packing.preview import preview

        print(*preview(options)[1], sep="\n")
    else:
        from shards.packing.pack import pack
        from shards.pool import keep_freed_memory

        # Here, not in `pack`: it changes malloc for the whole process, which may be a user's program.
        keep_freed_memory()
        pack(options)
    return 0


def verify_parser(prog: str = "fastmoco verify") -> Parser:
    """The parser of verifying."""
    parser = _path_parser(
        prog,
        "Compare the tars, indexes and records of a shard set with its checksums. Prints a line with file, key and"
        " cause for each difference. Exit code: 0 if all match, else 1.",
        ("{prog} shards/", "{prog} shards/ --decode", "{prog} s3://bucket/set --workers 32"),
    )
    group = parser.add_argument_group("verification")
    group.add_argument("--decode", action="store_true", help="decode every image as well")
    _add_workers(group)
    return parser


def info_parser(prog: str = "fastmoco info") -> Parser:
    """The parser of describing."""
    description = "Print the totals, classes, sizes and options of a shard set."
    return _path_parser(prog, description, ("{prog} shards/", "{prog} s3://bucket/set"))


def index_parser(prog: str = "fastmoco index") -> Parser:
    """The parser of indexing."""
    parser = _path_parser(
        prog,
        "Turn a folder of existing WebDataset tars into a shard set. Indexes, records and a manifest are written beside"
        " the tars, which are not changed. To continue an interrupted indexing, run the same command again.",
        ("{prog} tars/", "{prog} tars/ --no-check --workers 32"),
        "local folder of tars",
    )
    group = parser.add_argument_group("indexing")
    _add_workers(group)
    help_check = "do not decode the images: faster, but damaged ones are not found"
    group.add_argument("--no-check", dest="check", action="store_false", help=help_check)
    help_overwrite = "replace existing indexes and manifest (never the tars)"
    group.add_argument("--overwrite", action="store_true", help=help_overwrite)
    return parser


def _path_parser(
    prog: str, description: str, examples: Sequence[str], what: str = "folder or URL of a shard set"
) -> Parser:
    parser = Parser(prog, description=description, examples=examples)
    parser.add_argument_group("data").add_argument("path", metavar="PATH", help=what)
    return parser


def _add_workers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers", type=int, default=0, metavar="N", help="threads or processes (default: one per core)"
    )


def _workers(parser: Parser, parsed: argparse.Namespace) -> int:
    if not 0 <= parsed.workers <= MAX_WORKERS:
        parser.error(f"--workers {parsed.workers} is outside 0..{MAX_WORKERS}")
    from shards.pool import cores

    return parsed.workers or cores()


def _verify(parser: Parser, arguments: Sequence[str]) -> int:
    parsed = parser.parse_args(arguments)
    workers = _workers(parser, parsed)

    from shards.progress import progress
    from shards.reader import ShardSet
    from shards.verify import verify

    shard_set = ShardSet(parsed.path)
    problems = 0
    with progress("verify", len(shard_set.manifest.records), "{:,} of {:,} shards") as bar:
        # of the set as a whole, then of each shard
        for done, found in enumerate(verify(shard_set, workers, parsed.decode)):
            for problem in found:
                print(problem, flush=True)  # also into a pipe: a large set takes hours
            problems += len(found)
            bar.reach(done)
    if problems:
        print(f"{counted(problems, 'problem')} in {display(str(parsed.path))}")
        return 1
    shards = counted(len(shard_set.manifest.records), "shard")
    decoded = ", and every image can be decoded" if parsed.decode else ""
    print(f"{counted(len(shard_set), 'image')} in {shards}: all as packed{decoded}")
    return 0


def _info(parser: Parser, arguments: Sequence[str]) -> int:
    parsed = parser.parse_args(arguments)

    from shards.info import describe
    from shards.reader import ShardSet

    for line in describe(ShardSet(parsed.path)):
        print(line)
    return 0


def _index(parser: Parser, arguments: Sequence[str]) -> int:
    parsed = parser.parse_args(arguments)
    workers = _workers(parser, parsed)
    if is_url(local(parsed.path)):
        parser.error(f"{parsed.path} is not a local folder; pack its tars instead: --src {parsed.path} --source tars")

    from shards.foreign.indexing import index_tars
    from shards.format.manifest import QUARANTINE

    folder = Path(local(parsed.path))
    say = partial(print, flush=True)
    manifest = index_tars(folder, workers=workers, check=parsed.check, overwrite=parsed.overwrite, say=say)
    tars = counted(len(manifest.records), "tar")
    kinds = counted(len(manifest.classes), "class") if manifest.classes else "no labels"
    print(f"indexed {counted(manifest.samples, 'image')} in {tars}, {kinds}: {display(parsed.path)}")
    if manifest.quarantined:
        print(f"left out {manifest.quarantined:,}; {display(str(folder / QUARANTINE))} gives the reasons")
    return 0


if __name__ == "__main__":
    main()
