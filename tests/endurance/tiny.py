"""`fastmoco train` with an encoder so narrow that a step takes milliseconds."""

from __future__ import annotations

from fastmoco import train


def run() -> None:
    """As `fastmoco.train.run`."""
    from fastmoco.model import encoders
    from tests.support.runs import narrow_resnet10

    encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)
    train.run()


if __name__ == "__main__":
    from shards.command import command

    command(train.NAME, run)
