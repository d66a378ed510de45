"""Write every kind of file where no file may have more than 5 kB, and print the errors.

full_disk.py FOLDER
"""

import resource
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from fastmoco.layouts.files import write_arrays, write_tensors
from fastmoco.probes.cache import cached_parts
from fastmoco.ranks.world import World
from fastmoco.runs import saving
from fastmoco.runs.log import RunLog
from shards.progress import Pace

LIMIT = 5_000
folder = Path(sys.argv[1])
here = World(0, 1, torch.device("cpu"))
values = torch.zeros(100, 100)
writers = [
    lambda: saving.save(folder, {"progress": {"step": 1}, "values": values}, 1),
    lambda: write_tensors(folder / "weights.pth", {"a": values}, {}),
    lambda: write_tensors(folder / "weights.safetensors", {"a": values}, {}),
    lambda: write_arrays(folder / "weights.pkl", {"a": values.numpy()}),
    lambda: RunLog(folder, {"text": "x" * 2 * LIMIT}, 0, Pace(1)),
    lambda: cached_parts(folder, {"samples": 100}, here, (100, 100), lambda out: np.copyto(out, 1)),
]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
for write in writers:
    try:
        write()
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", flush=True)
