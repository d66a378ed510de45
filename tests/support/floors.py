"""The floors of each package, from the lowest up: an import may go down, never up."""

from __future__ import annotations

from tests.support.imports import Floors

PACKAGES = ("shards", "pipelines", "fastmoco", "benchmarks")
FLOORS = {
    "shards": Floors.of(
        base="_software command errors interrupts pool progress words",
        folders="kernels images storage format foreign packing",
    ),
    "pipelines": Floors.of(base="_random _threads augmentation errors options views_file", folders="kernels order"),
    "fastmoco": Floors.of(
        base="_agent _packages flags architectures channels settings config config_file changes commandline results "
        "devices limits precision recipes scalings spans views",
        folders="ranks kernels checkpoints runs model layouts probes finetuning report detection trainer demo doctor "
        "features maps api",
    ),
    "benchmarks": Floors.of(
        base="_arguments _charts _command _contrasts _environment _memory _original _processes _rates _results "
        "_sources _timing backends kernels soak step",  # the last four: those whose measurements the GPU suite repeats
        folders="_packing _communication _endurance _peers _learning _gpu",
    ),
}
"""A module beside the folders that is not in the base is above them all: no folder may import it."""
