"""The flags of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastmoco.recipes import recipe


@dataclass(frozen=True)
class ImageSettings:
    """The images, and their views."""

    src: Path | None = None
    """Folder of your own images, with or without one subfolder per class; default: generated images."""
    limit: int = 10_000
    """Maximum number of images to generate, or to use of your own."""
    image_size: int = field(default_factory=lambda: recipe("demo").image_size)
    """Side of a view in pixels."""
    seed: int = 0
    """Seed of the images, the weights and the views."""


@dataclass(frozen=True)
class RunSettings:
    """Length of the training, and where the report is written."""

    epochs: int | None = None
    """Length of the training in epochs."""
    steps: int | None = None
    """Length of the training in steps; overrides --epochs. The default does not depend on the number of images."""
    out: Path = Path("runs/demo")
    """Run folder. An interrupted demo in it is resumed; a finished one is kept."""
    overwrite: bool = False
    """Replace the demo that --out holds, if it is finished or has other settings."""


GROUPS: dict[str, type] = {"images": ImageSettings, "training and report": RunSettings}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class Args(RunSettings, ImageSettings):
    """Train a small encoder on generated images, or on your own, and write RUN/report.html."""
