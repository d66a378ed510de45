"""Write a trained encoder for other programs, and read the original MoCo's checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fastmoco.architectures import by_timm, check_arch
from fastmoco.commandline import CommandParser, parser_of
from fastmoco.config import ConfigError
from fastmoco.flags import named
from fastmoco.results import check_file, check_folder, check_readable
from shards.command import command
from shards.storage.files import write_whole

if TYPE_CHECKING:
    from fastmoco.layouts.encoders import EncoderWeights

NAME = "fastmoco export"
Format = Literal["torchvision", "timm", "hf-hub", "detectron2", "moco"]
WITH_CLASSIFIER = ("torchvision", "timm", "hf-hub")
"""Layouts in which the classifier of a fine-tuned encoder is written, too."""
_UNREAD: dict[Format | None, tuple[str, ...]] = {
    "torchvision": (".pkl",),
    "timm": (".pkl",),
    "moco": (".safetensors", ".pkl"),
    None: (".safetensors",),
}
"""Suffixes that a layout's readers do not open, None for a checkpoint's. detectron2 opens .pkl alone."""


@dataclass(frozen=True)
class OutputSettings:
    """The file to write."""

    out: Path
    """File to write: .safetensors selects that format, for torchvision and timm; detectron2 needs .pkl. For hf-hub, the
    folder."""
    format: Format | None = None
    """Layout to write; hf-hub: a folder that timm loads, for the Hugging Face hub; moco: a checkpoint of the original
    MoCo."""


@dataclass(frozen=True)
class SourceSettings:
    """The file to read."""

    checkpoint: Path | None = None
    """Encoder to export: a file in any known layout (docs/evaluation.md), or a run folder."""
    arch: str | None = None
    """Architecture; default: the file's, by its shapes."""
    from_moco: Path | None = None
    """Original-MoCo checkpoint, whole or as published, to convert to one of fastmoco train; instead of --checkpoint."""


GROUPS: dict[str, type] = {"source": SourceSettings, "output": OutputSettings}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class Args(SourceSettings, OutputSettings):
    """Write a trained encoder for another program, or convert a checkpoint of the original MoCo."""

    def __post_init__(self) -> None:
        """Check which file is read, and the name of the one to write; raises ConfigError."""
        check_arch(self.arch)
        if self.from_moco is not None:
            if self.checkpoint is not None or self.format is not None:
                raise ConfigError("--from-moco reads an original-MoCo checkpoint; leave out --checkpoint and --format")
            check_suffix(self.out, None)
        elif self.checkpoint is None or self.format is None:
            known = "|".join(get_args(Format))
            raise ConfigError(f"give --checkpoint PATH with --format {known}, or --from-moco PATH")
        else:
            check_suffix(self.out, self.format)


def main() -> None:
    """Entry of the command: parse, then export. torch is imported once the flags are known to be right."""
    command(NAME, _main)


def parser() -> CommandParser:
    """The command's parser."""
    return parser_of(
        Args,
        NAME,
        groups=GROUPS,
        examples=(
            "{prog} --checkpoint RUN --format torchvision --out encoder.pth",
            "{prog} --checkpoint RUN --format hf-hub --out encoder/",
            "{prog} --checkpoint RUN --format detectron2 --out encoder.pkl",
            "{prog} --from-moco checkpoint_0199.pth.tar --out imported.pt",
        ),
    )


def _main() -> None:
    args = Args(**vars(parser().parse_args()))
    if args.format == "hf-hub":
        check_folder("--out", args.out)
    else:
        check_file("--out", args.out, args.checkpoint, args.from_moco)
    check_readable("--checkpoint", args.checkpoint)
    check_readable("--from-moco", args.from_moco)
    from fastmoco.runs.log import set_up_logging

    set_up_logging()
    print(run(args))


def run(args: Args) -> str:
    """Write the file; returns what to do with it."""
    from fastmoco.runs.progress import loading, waiting

    with loading():
        from fastmoco.layouts.encoders import read_encoder
        from fastmoco.layouts.original import from_original
        from fastmoco.layouts.readers import READERS

    if args.from_moco is not None:
        with named("--from-moco"), waiting(f"reading {args.from_moco}"):
            imported = from_original(args.from_moco)
        with waiting(f"writing {args.out}"):
            _save(args.out, imported)
        return f"wrote {args.out}: a checkpoint for fastmoco knn, linear and export, and for --init"
    assert args.checkpoint is not None and args.format is not None  # checked by Args
    with named("--checkpoint"), waiting(f"reading {args.checkpoint}"):
        weights = read_encoder(args.checkpoint, args.arch)
    with waiting(f"writing {args.out}"):
        export(weights, args.format, args.out)
    if args.format not in WITH_CLASSIFIER:
        return f"wrote {args.out}: {READERS[args.format](weights.arch, weights.mean, weights.std)}"
    classes = None if weights.head is None else len(weights.head.classes)
    how = READERS[args.format](weights.arch, classes, weights.image_size, weights.channels)
    if classes is None or args.format == "hf-hub":
        return f"wrote {args.out}: {how}"
    return f"wrote {args.out}: {how}; {class_names(args.out)} has the names of its classes"


def export(weights: EncoderWeights, layout: Format, out: Path) -> None:
    """Write an encoder in another layout; of a fine-tuned one, for torchvision and timm with its classifier.

    Args:
        weights: The encoder, as `fastmoco.layouts.encoders.read_encoder` returns it.
        layout: The layout to write.
        out: File to write; replaced where it exists.

    Raises:
        ConfigError: The programs of this layout do not read files with the suffix of `out`.
        LayoutError: `out` cannot be written, or the layout needs more than the encoder.
    """
    from fastmoco.layouts.detectron2 import detectron2_arrays
    from fastmoco.layouts.files import LayoutError, write_arrays, write_tensors
    from fastmoco.layouts.hub import write_for_hub
    from fastmoco.layouts.original import to_original

    check_suffix(out, layout)
    if by_timm(weights.arch) and layout not in ("timm", "hf-hub"):
        raise LayoutError(
            f"--format {layout} is a layout of torchvision's ResNets, and the encoder is a {weights.arch}; use "
            "--format timm or hf-hub"
        )
    if weights.channels != 3 and layout not in WITH_CLASSIFIER:
        raise LayoutError(
            f"--format {layout} is for encoders of three channels, and this one has {weights.channels}; use --format "
            f"{', '.join(WITH_CLASSIFIER[:-1])} or {WITH_CLASSIFIER[-1]}"
        )
    if layout == "hf-hub":
        write_for_hub(weights, out)
    elif layout in WITH_CLASSIFIER:
        write_tensors(out, weights.under_timms_names(), weights.metadata())
        if weights.head is not None:
            names = json.dumps(weights.head.classes, ensure_ascii=False, indent=1)
            write_whole(class_names(out), f"{names}\n".encode())
    elif layout == "detectron2":
        # detectron2 takes a pickle with `__author__` for its own; matching_heuristics lets it match names by their
        # endings, as a detector's backbone has a prefix
        write_arrays(out, detectron2_arrays(weights.tensors), __author__="fastmoco", matching_heuristics=True)
    elif weights.checkpoint is None:
        raise LayoutError("--format moco needs both encoders and the queue; give a checkpoint of fastmoco train")
    else:
        _save(out, to_original(weights.checkpoint))


def class_names(out: Path) -> Path:
    """The file beside a classifier that has the names of its classes: a JSON list in the order of the scores."""
    return out.with_suffix(".classes.json")


def check_suffix(out: Path, layout: Format | None) -> None:
    """Raise ConfigError unless the readers of a layout (None: of our checkpoints) read files of this suffix."""
    if layout == "hf-hub":
        return  # a folder
    wanted = ".pkl" if layout == "detectron2" else ".pth"
    unread = out.suffix != ".pkl" if layout == "detectron2" else out.suffix in _UNREAD[layout]
    if unread:
        raise ConfigError(
            f"--out {out} has a name that {layout or 'a checkpoint'} is not read from; end it in {wanted}"
        )


def _save(out: Path, state: dict[str, Any]) -> None:
    from fastmoco.checkpoints.saving import write

    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, state)


if __name__ == "__main__":
    main()
