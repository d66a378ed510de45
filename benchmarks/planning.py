"""Seconds and peak memory of planning and of reading one shard's part, by the number of listed records.

    python benchmarks/planning.py --records 10000 100000 1000000 10000000 --json planning.json

The planner is `fastmoco-shard --dry-run`, the worker what reads its shard's part of a plan that was kept. Each is a
process of its own; its peak is the kernel's VmHWM, so this runs on Linux alone. The list is made, of paths of 60
bytes, and no image is read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shards import PackOptions, cli
from shards.packing.plan import WORK, keep_plan, read_shard
from shards.packing.planning import make_plan
from shards.packing.sources import open_source
from shards.storage.store import open_store


def main() -> None:
    """Measure, print a line for each size, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7], metavar="N")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows and the environment to this file")
    parser.add_argument("--part", choices=("planner", "keeper", "worker"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(_measure(args.part, args.folder)))
        return
    rows = [_row(count) for count in args.records]
    if args.json:
        from _environment import environment  # imports torch, which the measured processes must not

        args.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def _row(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fastmoco-") as name:
        folder = Path(name)
        with open(folder / "list.txt", "w", encoding="ascii") as file:
            file.writelines(f"crawl/2026-11/{number % 1000:03d}/{number * 2654435761 % 2**64:038d}.jpg\n"
                            for number in range(count))  # fmt: skip
        planner, _, worker = (_in_process(part, folder) for part in ("planner", "keeper", "worker"))
        plan_bytes = (folder / "out" / WORK / "plan.bin").stat().st_size
    row = {
        "records": count,
        "plan_bytes": plan_bytes,
        "planner_seconds": planner["seconds"],
        "planner_cpu_seconds": planner["cpu_seconds"],
        "planner_rss_mb": planner["rss_mb"],
        "worker_seconds": worker["seconds"],
        "worker_rss_mb": worker["rss_mb"],
    }
    print(", ".join(f"{key} {value:,}" for key, value in row.items()), flush=True)
    return row


def _in_process(part: str, folder: Path) -> dict[str, float]:
    line = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def _measure(part: str, folder: Path) -> dict[str, float]:
    """Do one part in this process."""
    src, out = folder / "list.txt", folder / "out"
    store = open_store(out)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    if part == "planner":
        with contextlib.redirect_stdout(sys.stderr):
            code = cli.run(["--src", str(src), "--out", str(out), "--dry-run"])
        if code:
            raise SystemExit(code)
    elif part == "keeper":
        options, making = PackOptions(src, out), out / WORK / "making"
        keep_plan(store, making, make_plan(options, open_source(options), making))
    else:
        read_shard(store, 0)
    return {
        "seconds": round(time.perf_counter() - begun, 3),
        "cpu_seconds": round(time.process_time() - begun_cpu, 3),
        "rss_mb": round(_peak_kilobytes() / 1024, 1),
    }


def _peak_kilobytes() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise SystemExit("/proc/self/status has no VmHWM: this benchmark runs on Linux alone")
    return int(found[1])


if __name__ == "__main__":
    main()
