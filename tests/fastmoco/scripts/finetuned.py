"""Run under torchrun: a fine-tuning of a narrow encoder; the result of each rank goes to FOLDER.

finetuned.py TRAIN VAL FOLDER
"""

import json
import sys
from pathlib import Path

from fastmoco.finetuning.loop import Finetuning
from fastmoco.finetuning.settings import FinetuneSettings
from fastmoco.model import encoders
from fastmoco.probes.encoders import open_encoder
from fastmoco.ranks.world import world
from tests.support.runs import narrow_resnet10

encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
train, val, folder = map(Path, sys.argv[1:])
few = {"image_size": 32, "batch_size": 24, "epochs": 2, "threads": 1, "arch": "resnet10", "lr": 0.02, "head_lr": 0.2}
with world() as here:
    settings = FinetuneSettings("untrained", train, val, out=folder / "run", **few)
    result = Finetuning(settings, open_encoder("untrained", "resnet10"), here).run()
    (folder / f"rank-{here.rank}.json").write_text(json.dumps(result))
