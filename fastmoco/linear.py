"""Linear classification on frozen features: `torchrun -m fastmoco.linear`, or `python -m` for one process.

torchrun -m fastmoco.linear --checkpoint RUN/checkpoints/step-XXXXXXXX.pt --train SHARDS --val SHARDS
"""

from __future__ import annotations

import json
from typing import Any

import tyro

from fastmoco._fail import fail
from fastmoco.distributed import world
from fastmoco.layouts.files import LayoutError
from fastmoco.probes.encoders import open_encoder
from fastmoco.probes.linear import LinearProbe
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.probes.sets import ProbeError
from fastmoco.runs.checkpoint import CheckpointError
from fastmoco.runs.errors import Stopped
from fastmoco.runs.log import set_up_logging, write_atomically
from pipelines import PipelineError
from shards import ShardSetError


def main() -> None:
    """Parse, open, train, tell; what the user can mend ends in one line and exit code 2."""
    try:
        settings = tyro.cli(LinearSettings, prog="fastmoco.linear")
        set_up_logging()
        run(settings)
    except (CheckpointError, LayoutError, PipelineError, ProbeError, ShardSetError) as error:
        fail("fastmoco.linear", error, 2)
    except Stopped as reason:
        fail("fastmoco.linear", reason, 130)


def run(settings: LinearSettings) -> dict[str, Any]:
    """Probe, print, and write the result; returns it."""
    frozen = open_encoder(settings.checkpoint, settings.arch, settings.seed)
    with world() as here:
        result = LinearProbe(settings, frozen, here).run()
        if here.is_main:
            print(told(result))
            if settings.json:
                write_atomically(settings.json, json.dumps(result, indent=2) + "\n")
    return result


def told(result: dict[str, Any]) -> str:
    """The result for a person: a line for each learning rate."""
    what = f"({result['val']} images, {result['classes']} classes)"
    return "\n".join(
        f"linear top-1 {row['linear_top1']:.2f} %, top-5 {row['linear_top5']:.2f} %, lr {row['lr']:g} {what}"
        for row in result["results"]
    )


if __name__ == "__main__":
    main()
