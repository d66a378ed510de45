"""What the scripts share that hold training against the papers' pseudo-code, written out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from fastmoco.model import encoders
from tests.support.runs import narrow_resnet10


def compare_cases(compare: Callable[[str, int, int], None]) -> None:
    """Call `compare(case, rank, ranks)` for each case of the command line, over gloo where there are several ranks."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(1)
    encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
    for case in sys.argv[1:]:
        compare(case, rank, ranks)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        print("ok")
