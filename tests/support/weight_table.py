"""Try each weight file with each command; `python -m tests.support.weight_table` prints the table in Markdown.

A cell calls what the command calls once its flags are parsed, on a narrow resnet10.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from fastmoco import export
from fastmoco.checkpoints import checkpoint
from fastmoco.detection.models import build_detector, encoder_name
from fastmoco.detection.settings import DetectSettings
from fastmoco.detection.weights import load_encoder
from fastmoco.layouts.encoders import read_encoder
from fastmoco.model import encoders
from fastmoco.model.moco import MoCo
from fastmoco.probes.encoders import open_encoder
from fastmoco.ranks.world import World
from fastmoco.recipes import moco_v2
from fastmoco.trainer.start import begin_from
from shards.errors import UserError
from tests.support import weight_files
from tests.support.runs import narrow_resnet10
from tests.support.weight_files import Tensors

NARROW = narrow_resnet10(1 / 4)
HERE = World(0, 1, torch.device("cpu"))
SMALL = replace(moco_v2(), arch="resnet10", queue_size=32, feature_dim=16)


def _probed(path: Path) -> Tensors:
    return open_encoder(path).encoder.state_dict()


def _detected(path: Path) -> Tensors:
    detector = build_detector(DetectSettings(arch="resnet10"), 3)
    load_encoder(detector, "c4", str(path), read_encoder(path, "resnet10"))
    named = {encoder_name("c4", name): value for name, value in detector.state_dict().items()}
    return {name: value for name, value in named.items() if name is not None}


def _trained(path: Path) -> Tensors:
    model = MoCo(SMALL)
    begin_from(model, path, SMALL, HERE)
    return model.encoder.backbone.state_dict()


def _exported(path: Path) -> Tensors:
    out = path.with_suffix(".out.pth")
    export.run(export.Args(out=out, checkpoint=path, format="torchvision"))
    return torch.load(out, weights_only=True)


def _imported(path: Path) -> Tensors:
    out = path.with_suffix(".out.pt")
    export.run(export.Args(out=out, from_moco=path))
    state = checkpoint.load(out)["query_encoder"]
    return {n.removeprefix("backbone."): value for n, value in state.items() if n.startswith("backbone.")}


COMMANDS: dict[str, Callable[[Path], Tensors]] = {
    # both probes open their encoder by the same function
    "knn, linear --checkpoint": _probed,
    "detect --init": _detected,
    "train --init": _trained,
    "export --checkpoint": _exported,
    "export --from-moco": _imported,
}


def ours(q: Tensors, k: Tensors) -> dict[str, object]:
    """A checkpoint of this program with the encoders q and k."""
    with mock.patch.dict(encoders._BUILDERS, resnet10=NARROW):
        model = MoCo(SMALL)
        model.encoder.backbone.load_state_dict(q)
        key = model.parts()["key_encoder"]
        assert isinstance(key, encoders.Encoder)
        key.backbone.load_state_dict(k)
        parts = {name: module.state_dict() for name, module in model.parts().items()}
    progress = {"epoch": 1, "step": 8, "samples": 64, "window": {}}
    data = {"digest": "a" * 64, "samples": 64}
    return {"format": checkpoint.FORMAT, "config": SMALL.to_dict(), "data": data, "progress": progress, **parts}


def tried(command: str, path: Path, wanted: Tensors) -> str:
    """`loads`, if the command takes exactly the tensors `wanted`; or `refused: ` and why."""
    with mock.patch.dict(encoders._BUILDERS, resnet10=NARROW):
        try:
            taken = COMMANDS[command](path)
        except UserError as error:
            return f"refused: {str(error).replace(str(path), path.name)}"
    assert taken.keys() == wanted.keys()
    for name, value in wanted.items():
        # the detector has no counters of its own, and some files have none
        assert name.endswith("num_batches_tracked") or torch.equal(taken[name], value), name
    return "loads"


def files(folder: Path) -> dict[Path, Tensors]:
    """Every file, and the tensors that it is to give."""
    q, k = weight_files.encoder(1), weight_files.encoder(2)
    contents = {"fastmoco.train.pt": ours} | weight_files.CONTENTS
    contents |= {name: make for name, (make, _) in weight_files.REFUSED.items()}
    found = {}
    for name, make in contents.items():
        path = weight_files.write(make(q, k), folder / name, legacy="no counters" in name)
        rounded = {"half": torch.float16, "bfloat16": torch.bfloat16}
        dtype = next((dtype for word, dtype in rounded.items() if word in name), torch.float64)
        found[path] = {n: v.to(dtype).float() if v.is_floating_point() else v for n, v in q.items()}
    return found


def main() -> None:
    """Print the table."""
    print("| file | " + " | ".join(COMMANDS) + " |\n|" + " --- |" * (len(COMMANDS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for path, wanted in files(Path(folder)).items():
            print(f"| `{path.name}` | " + " | ".join(tried(name, path, wanted) for name in COMMANDS) + " |")


if __name__ == "__main__":
    main()
