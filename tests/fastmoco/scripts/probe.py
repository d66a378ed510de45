"""Run under torchrun: a kNN table, into a cache, and a linear probe in both modes; results go to FOLDER.

probe.py SETS FOLDER
"""

import json
import sys
from pathlib import Path

from fastmoco.probes.encoders import open_encoder
from fastmoco.probes.knn import Probe
from fastmoco.probes.linear import LinearProbe
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.ranks.world import world
from pipelines import PipelineOptions

sets, folder = map(Path, sys.argv[1:])
frozen = open_encoder("untrained", "resnet10")
results = {}
with world() as here:
    probe = Probe(sets / "train", sets / "val", 32, 40, here, options=PipelineOptions(threads=1))
    banks = probe.banks(frozen.encoder, frozen.digest, folder / "cache")
    results["knn"] = probe.table(banks, [(1, 0.07), (5, 0.07), (20, 0.2)])
    for mode in ("crops", "fast"):
        few = {"epochs": 5, "batch_size": 24, "lr": (0.3, 3.0, 30.0), "fast": mode == "fast", "image_size": 32}
        more = {"arch": "resnet10", "threads": 1, "out": folder / mode}
        settings = LinearSettings("untrained", sets / "train", sets / "val", **few, **more)
        results[mode] = LinearProbe(settings, frozen, here).run()
    (folder / f"rank-{here.rank}.json").write_text(json.dumps(results))
