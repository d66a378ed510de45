"""Run every documented command line and Python block: `python -m tests.documented [--only WORD] [--list]`.

Each page has a copy of the repository of its own. Exit code 1 if a line fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from tests.documented.changes import changed
from tests.documented.pages import command_lines, python_blocks
from tests.documented.running import Result, Workplace, a_bucket


def main() -> int:
    """Run what the pages show, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.documented", description="Run every documented line.")
    parser.add_argument("--only", default="", metavar="WORD", help="pages or lines that contain WORD")
    parser.add_argument("--list", action="store_true", help="print what would be run")
    given = parser.parse_args()
    shown = sorted([*command_lines(), *python_blocks()], key=lambda one: (one.page, one.line))
    blocks = set(python_blocks())
    chosen = [one for one in shown if given.only in str(one)]
    failures = 0
    with a_bucket():
        for page, on_page in groupby(chosen, key=lambda one: one.page):
            if given.list:
                for one in on_page:
                    print(f"{one.page}:{one.line}: {'python' if one in blocks else changed(one.text) or 'parsed only'}")
                continue
            with tempfile.TemporaryDirectory() as folder:
                place = Workplace(Path(folder))
                for one in on_page:
                    failures += told(place.run_python(one) if one in blocks else place.run(one))
            print(f"{page}: done", flush=True)
    print(f"{len(chosen)} lines, {failures} failed")
    return int(failures > 0)


def told(result: Result) -> bool:
    """Print what became of a line; whether it failed."""
    state = "parsed" if result.ran is None else "ok" if result.code == 0 else f"exit code {result.code}"
    first = result.shown.text.splitlines()[0]
    print(f"{state:>12} {result.seconds:6.1f} s  {result.shown.page}:{result.shown.line}: {first}", flush=True)
    if result.code:
        print(result.ran, result.output, sep="\n", flush=True)
    return result.code != 0


if __name__ == "__main__":
    sys.exit(main())
