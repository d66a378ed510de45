"""All checks and measurements that need a GPU, in one command and without network access.

    python benchmarks/gpu_suite.py [--without-dali | --with-dali | --parts NAME ...] [--shards PATH] [--kit FOLDER]
    python benchmarks/gpu_suite.py --device cpu --tiny

Each part is a separate process with a time limit, so that a part which fails stops no other; the exit status is then
1. Rows are written to --out as they are measured, one JSON line each, and tables of them (.md) beside it at the end.
--without-dali and --with-dali end after five minutes each, or after --minutes. --device cpu --tiny shows on any machine
that the parts work; its figures mean nothing.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # where nothing can be installed, neither is this project

from _command import BenchmarkError, script  # noqa: E402
from _gpu.kit import packages  # noqa: E402
from _gpu.parts import PARTS, WITH_DALI, WITHOUT_DALI  # noqa: E402
from fastmoco.flags import at_least, one_of, positive, some  # noqa: E402

KIT = ROOT / ".gpu"


@dataclass(frozen=True)
class Args:
    """Run the checks and measurements that need a GPU."""

    without_dali: bool = False
    """Run the parts that do not need DALI."""
    with_dali: bool = False
    """Run the parts that need DALI, and the compiled step."""
    parts: tuple[str, ...] = tuple(PARTS)
    """Parts to run."""
    minutes: float | None = None
    """Time limit of all parts together; default: 5 for --without-dali and --with-dali, none otherwise."""
    shards: str | None = None
    """Shard set of at least two batches; default: generated images."""
    arch: str = "resnet50"
    """Encoder."""
    batch_size: int = 256
    """Images per step."""
    image_size: int = 224
    """Side of a view in pixels."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: run what works there."""
    tiny: bool = False
    """Few steps of a small encoder on small images, to show that the parts work."""
    kit: Path | None = KIT if KIT.is_dir() else None
    """Folder of packages that this machine lacks, or of archives; default: .gpu in the checkout, if it exists."""
    out: Path = ROOT / "benchmarks" / "results" / "gpu_suite.jsonl"
    """File for the rows; it is replaced."""


def run(args: Args) -> int:
    """Run the parts one after another; the exit code is 1 if one failed."""
    names = chosen(args)
    at_least(1, args, "batch_size", "image_size")
    positive(args, "minutes")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            "torch finds no CUDA device; run this on a machine with one (nvidia-smi lists it) and a CUDA build of "
            "torch, or add --device cpu --tiny, which shows that the parts work"
        )
    with packages(args.kit), tempfile.TemporaryDirectory(prefix="gpu_suite-") as folder:
        statuses = measured(args, names, Path(folder))
    failed = [row["part"] for row in statuses if row["status"] != "passed"]
    if failed:
        print(f"gpu_suite: {', '.join(failed)} failed; see {args.out}", file=sys.stderr)
    return int(bool(failed))


def chosen(args: Args) -> Sequence[str]:
    """Names of the parts to run; raises BenchmarkError if flags exclude each other, ConfigError for an unknown name."""
    some(args, "parts")
    one_of(PARTS, args, "parts")
    given = [args.without_dali, args.with_dali, args.parts != Args.parts]
    if sum(given) > 1:
        raise BenchmarkError("--without-dali, --with-dali and --parts each choose parts; leave all but one of them out")
    return WITHOUT_DALI if args.without_dali else WITH_DALI if args.with_dali else args.parts


def measured(args: Args, names: Sequence[str], folder: Path) -> Sequence[dict]:
    """Run the parts and write rows and tables; returns a row of each part with its status."""
    from _environment import environment  # after the kit's packages can be found
    from _gpu.run import finished, run_part
    from _gpu.suite import Suite, make_images
    from _gpu.table import markdown
    from _results import add_row, show, write_beside
    from pipelines._threads import cores_of_rank
    from pipelines.choice import install, installed
    from shards import ShardSet

    sizes = ("resnet10", 8, 32) if args.tiny else (args.arch, args.batch_size, args.image_size)
    suite = Suite(args.device, args.tiny, args.shards or str(folder / "shards"), *sizes, cores_of_rank())
    if args.shards is None:
        if finished(make_images, (suite, folder), 120):
            raise BenchmarkError("the images could not be generated; the error is above. --shards PATH needs none")
    else:
        with ShardSet(args.shards) as shards:
            if len(shards) < 2 * suite.batch_size:
                raise BenchmarkError(
                    f"--shards {args.shards} has {len(shards)} images; the parts need two batches of "
                    f"{suite.batch_size}, {2 * suite.batch_size} images"
                )
    machine = {"card": suite.card, "arch": suite.arch, "batch_size": suite.batch_size, "image_size": suite.image_size}
    machine |= {"cores": suite.cores, "environment": environment()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.unlink(missing_ok=True)
    add_row(args.out, machine)
    minutes = 5.0 if args.minutes is None and (args.without_dali or args.with_dali) else args.minutes
    ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
    statuses = []
    for name in names:
        part = PARTS[name]
        left = ends - time.monotonic()
        if left <= 0:
            status = {"part": name, "status": f"not run: the {minutes:g} minutes are over", "seconds": 0}
        elif part.dali and not installed():
            status = {"part": name, "status": f"not run: DALI is not installed ({install()})", "seconds": 0}
        else:
            status = run_part(name, replace(part, seconds=min(part.seconds, left)), suite, args.out)
        statuses.append(show(status))
        add_row(args.out, status)
    rows = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
    text = markdown(rows)
    write_beside(args.out, text)
    print(text, end="")
    return statuses


if __name__ == "__main__":
    script(Args, run)
