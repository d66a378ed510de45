"""Runs of two and three ranks under torchrun, each hit by a fault at a random moment from its start to its end.

    python -m tests.endurance --runs 40 --seed 0 [--kinds kill-rank term ...] [--only N]

Each run must end with the parameters, the queue and the metrics of an undisturbed one, within its bound, without a
process that lives on and without a good image replaced. Where it does not, the run is named with what repeats it, its
folder is kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fastmoco.demo.made import make_images  # noqa: E402
from tests.endurance.plan import KINDS, case  # noqa: E402
from tests.endurance.running import Broken, Place, endure  # noqa: E402
from tests.support.faulty import Faults, FaultyServer  # noqa: E402
from tests.support.serving import serving  # noqa: E402
from tests.support.sets import pack_set  # noqa: E402


def main() -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--only", type=int, help="the number of one run")
    parser.add_argument("--work", type=Path, default=Path("runs/endurance"), help="folder, emptied at the start")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no run is left alive
    numbers = range(args.runs) if args.only is None else [args.only]
    shutil.rmtree(args.work, ignore_errors=True)
    with serving(FaultyServer(Faults())) as server:
        place = made(args.work.resolve(), server)
        failed, began = 0, time.monotonic()
        for number in numbers:
            this = case(args.seed, number, tuple(args.kinds))
            try:
                print(f"{this}: {endure(this, place)}: equal", flush=True)
            except Broken as broken:
                failed += 1
                repeat = f"python -m tests.endurance --seed {args.seed} --only {number}"
                repeat += f" --kinds {' '.join(args.kinds)}" if tuple(args.kinds) != KINDS else ""
                print(f"{this}, at {this.share:.3f} of its life: FAILED: {broken}\n    {repeat}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{len(numbers) - failed} of {len(numbers)} runs equal the undisturbed one, seed {args.seed}, {minutes:.0f} min"
    )
    sys.exit(failed > 0)


def made(work: Path, server: FaultyServer) -> Place:
    """The place of the runs with its set, which the server serves."""
    make_images(work / "photos", classes=4, per_class=24, size=64, seed=0)
    shards = pack_set(work / "photos", work / "set", shard_size=32)
    server.files = {f"/set/{path.name}": path.read_bytes() for path in shards.iterdir()}
    return Place(work, server)


if __name__ == "__main__":
    main()
