"""The files in deploy/ for SLURM and Kubernetes, and an elastic run, on one machine: minutes for each.

    python -m tests.clusters [slurm] [kubernetes] [elastic]

SLURM has two nodes on this machine; it must be installed (Debian: slurm-wlm, munge). Kubernetes' Pods are processes.
The nodes of an elastic run are two torchruns, of which one is lost and another joins.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fastmoco.demo.made import make_images  # noqa: E402
from tests.clusters import elastic, kubernetes, slurm  # noqa: E402
from tests.support.sets import pack_set  # noqa: E402

CHECKS = {"slurm": slurm.check, "kubernetes": kubernetes.check, "elastic": elastic.check}


def main() -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CHECKS), help="slurm, kubernetes, elastic")
    parser.add_argument("--work", type=Path, default=Path("runs/clusters"), help="folder, emptied at the start")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left alive
    work = args.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    make_images(work / "photos", classes=4, per_class=24, size=64, seed=0)
    shards = pack_set(work / "photos", work / "set", shard_size=32)
    for name in args.names:
        if name == "slurm" and slurm.missing():
            print(f"slurm: not run, as this machine has no {', '.join(slurm.missing())}")
            continue
        (work / name).mkdir()
        print(f"{name}: {CHECKS[name](work / name, shards)}", flush=True)


if __name__ == "__main__":
    main()
