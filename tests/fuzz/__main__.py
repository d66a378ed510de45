"""Damaged files through the product's readers: no crash, no hang, a cause for each that is rejected.

    python -m tests.fuzz --kind jpeg png --count 20000 --seed 0

Input N depends on kind, seed and N alone. The inputs are tried in a separate process. If it dies, takes more than five
seconds of processor time or 2 GiB of memory for one, or gives no cause that says what is wrong, that input is named and
saved, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from tests.fuzz.faults import damaged
from tests.fuzz.running import KINDS, MOST, kind_of, run


def main() -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=Path("runs/fuzz"), help="folder for inputs with a fault")
    args = parser.parse_args()
    found_any = False
    for name in args.kind:
        begin = time.monotonic()
        count = min(args.count, MOST.get(name, args.count))
        outcomes, faults = run(name, count, args.seed)
        print(f"{name}: {count:,} inputs, seed {args.seed}, {time.monotonic() - begin:.0f} s")
        for outcome, times in outcomes.most_common():
            print(f"{times:8,} {outcome}")
        for fault in faults:
            print(fault)
            number = int(re.findall(r"\d+", fault)[0])
            args.save.mkdir(parents=True, exist_ok=True)
            (args.save / f"{name}-{args.seed}-{number}").write_bytes(damaged(kind_of(name), args.seed, number))
        found_any = found_any or bool(faults)
    sys.exit(found_any)


if __name__ == "__main__":
    main()
