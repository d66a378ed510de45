"""The flags of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastmoco.recipes import recipe


@dataclass(frozen=True)
class Args:
    """Train a small encoder on generated images, or on your own, and write RUN/report.html."""

    src: Path | None = None
    """Folder of your own images, with or without one subfolder per class; default: generated images."""
    out: Path = Path("runs/demo")
    """Run folder. A finished demo in it is replaced; an interrupted one is resumed."""
    epochs: int | None = None
    """Length of the training in epochs."""
    steps: int | None = None
    """Length of the training in steps; overrides --epochs. The default does not depend on the number of images."""
    image_size: int = field(default_factory=lambda: recipe("demo").image_size)
    """Side of a view in pixels."""
    limit: int = 10_000
    """Maximum number of images to generate, or to use of your own."""
    seed: int = 0
    """Seed of the images, the weights and the views."""
