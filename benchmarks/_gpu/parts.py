"""The parts of `gpu_suite.py` by name. Nothing heavy is imported here: the flags are checked against these names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """A part of the suite.

    Attributes:
        module: of this folder.
        function: makes its rows from a `Suite`.
        seconds: after which it is ended.
        shows: what its rows are, in words.
        dali: whether it needs DALI.
        options: further arguments of the function.
    """

    module: str
    function: str
    seconds: float
    shows: str
    dali: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


TORCH, DALI = {"backend": "torch"}, {"backend": "dali"}
PARTS = {
    "kernels": Part(
        "kernels", "rows", 70, "loss and queue, BatchNorm and colours against float64, timed on the device"
    ),
    "step": Part("steps", "rates", 100, "training steps by precision, BatchNorm and batch size"),
    "profile": Part("steps", "profiled", 40, "the heaviest kernels of one step"),
    "original": Part("steps", "original", 60, "the original formulation's step and loader"),
    "resume": Part("soundness", "resume", 60, "tensors that differ after resuming"),
    "tests": Part("soundness", "tests", 120, "pytest -m gpu"),
    "torch-loader": Part("loading", "torch_loader", 40, "the torch backend's loader by threads"),
    "torch-training": Part("loading", "training", 50, "loader, model and both, torch backend", options=TORCH),
    "torch-loop": Part(
        "loading", "loop", 30, "iterations that must not wait for the device, torch backend", options=TORCH
    ),
    "views": Part("loading", "views", 70, "DALI's views against the torch backend's, in levels of 255", dali=True),
    "damaged": Part("soundness", "damaged", 30, "damaged images in a batch", dali=True),
    "dali-loader": Part("loading", "dali_loader", 70, "DALI's loader by threads and decoder load", dali=True),
    "dali-training": Part("loading", "training", 50, "loader, model and both, DALI", dali=True, options=DALI),
    "dali-loop": Part(
        "loading", "loop", 30, "iterations that must not wait for the device, DALI", dali=True, options=DALI
    ),
    "memory": Part("soundness", "memory_over_batches", 60, "memory over batches with large images", dali=True),
    # last: compiling takes longest, and tells least about the rest
    "compiled": Part("steps", "compiled", 120, "the step with compiled encoders"),
}
WITH_DALI = (*(name for name, part in PARTS.items() if part.dali), "compiled")
WITHOUT_DALI = tuple(name for name in PARTS if name not in WITH_DALI)
