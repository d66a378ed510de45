"""Hand a trained encoder to other programs, and read the original MoCo's checkpoints.

python -m fastmoco.export --checkpoint RUN/checkpoints/step-XXXXXXXX.pt --format torchvision --out encoder.pth
python -m fastmoco.export --from-moco checkpoint_0199.pth.tar --out imported.pt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import tyro

from fastmoco._fail import fail
from fastmoco.layouts.detectron2 import detectron2_arrays
from fastmoco.layouts.encoders import EncoderWeights, read_encoder
from fastmoco.layouts.files import LayoutError, whole_file, write_arrays, write_tensors
from fastmoco.layouts.original import from_original, to_original
from fastmoco.runs.checkpoint import CheckpointError

Format = Literal["torchvision", "timm", "detectron2", "moco"]
_READERS = {
    "torchvision": "torchvision's {arch} with fc = torch.nn.Identity() loads it strictly",
    "timm": "timm.create_model('{arch}', num_classes=0) loads it strictly",
    "detectron2": "set MODEL.WEIGHTS to it, INPUT.FORMAT RGB, PIXEL_MEAN [123.675, 116.28, 103.53], "
    "PIXEL_STD [58.395, 57.12, 57.375] and RESNETS.STRIDE_IN_1X1 False",
    "moco": "the original MoCo's programs read it",
}


@dataclass(frozen=True)
class Args:
    """Write a trained encoder in another program's layout, or make a checkpoint of the original MoCo's."""

    out: Path
    """File to write. A name in .safetensors gives that format, for torchvision and timm; detectron2 needs .pkl."""
    checkpoint: Path | None = None
    """Encoder to export: checkpoint of fastmoco.train, original-MoCo checkpoint, or torchvision state dictionary."""
    arch: str | None = None
    """Architecture, if the file does not record it."""
    format: Format | None = None
    """Whose layout: torchvision, timm, detectron2, or moco for the original MoCo's checkpoints."""
    from_moco: Path | None = None
    """Checkpoint of the original MoCo to make one of this program of, in place of --checkpoint and --format."""


def main() -> None:
    """Entry of the command; what the user can mend ends in one line and exit code 2."""
    args = tyro.cli(Args, prog="fastmoco.export")
    try:
        print(run(args))
    except (CheckpointError, LayoutError) as error:
        fail("fastmoco.export", error, 2)


def run(args: Args) -> str:
    """Write the file; returns what to do with it."""
    if args.from_moco is not None:
        if args.checkpoint is not None or args.format is not None:
            raise LayoutError("--from-moco reads a file of the original MoCo; leave out --checkpoint and --format")
        _needs_suffix(args.out, "a checkpoint", {".safetensors": False})
        _save(args.out, from_original(args.from_moco))
        return f"wrote {args.out}: a checkpoint for fastmoco.knn, fastmoco.linear and fastmoco.export"
    if args.checkpoint is None or args.format is None:
        known = "|".join(get_args(Format))
        raise LayoutError(f"give --checkpoint PATH with --format {known}, or --from-moco PATH")
    weights = read_encoder(args.checkpoint, args.arch)
    export(weights, args.format, args.out)
    return f"wrote {args.out}: {_READERS[args.format].format(arch=weights.arch)}"


def export(weights: EncoderWeights, layout: Format, out: Path) -> None:
    """Write an encoder in another layout.

    Args:
        weights: what `read_encoder` returns.
        layout: whose.
        out: file to write; replaced where it exists.

    Raises:
        LayoutError: `out` has a suffix that this layout is not read from, or cannot be written.
    """
    if layout in ("torchvision", "timm"):
        _needs_suffix(out, layout, {".pkl": False})
        write_tensors(out, weights.tensors, {"arch": weights.arch})
    elif layout == "detectron2":
        _needs_suffix(out, layout, {".pkl": True})
        write_arrays(out, detectron2_arrays(weights.tensors), __author__="fastmoco", matching_heuristics=True)
    else:
        _needs_suffix(out, layout, {".safetensors": False, ".pkl": False})
        if weights.checkpoint is None:
            raise LayoutError("--format moco needs both encoders and the queue; give a checkpoint of fastmoco.train")
        _save(out, to_original(weights.checkpoint))


def _needs_suffix(out: Path, what: str, rules: dict[str, bool]) -> None:
    for suffix, wanted in rules.items():
        if (out.suffix == suffix) != wanted:
            remedy = f"end it in {suffix}" if wanted else "end it in .pth"
            raise LayoutError(f"--out {out} has a name that {what} is not read from; {remedy}")


def _save(out: Path, state: dict) -> None:
    with whole_file(out) as file:
        torch.save(state, file)


if __name__ == "__main__":
    main()
