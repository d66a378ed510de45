"""Run under torchrun: one kNN table, from a cache, and a linear probe in both modes; results go to FOLDER.

probe.py SETS FOLDER
"""

import sys
from pathlib import Path

from fastmoco import knn, linear
from fastmoco.probes.linear_settings import LinearSettings

sets, folder = map(Path, sys.argv[1:])
where = {"train": sets / "train", "val": sets / "val", "arch": "resnet10", "image_size": 32, "threads": 1}
votes = {"k": (1, 5, 20), "temperature": (0.07, 0.2)}
knn.run(knn.Args("untrained", **where, **votes, cache=folder / "cache", json=folder / "knn.json"))
for mode in ("crops", "fast"):
    few = {"epochs": 5, "batch_size": 24, "lr": (0.3, 3.0, 30.0), "fast": mode == "fast"}
    linear.run(LinearSettings("untrained", **where, **few, out=folder / mode, json=folder / f"{mode}.json"))
