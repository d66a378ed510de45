"""A run's records in Weights & Biases, for --wandb."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastmoco.flags import ConfigError, require
from fastmoco.runs.board import grouped
from fastmoco.runs.environment import shareable
from shards.storage.files import write_whole

log = logging.getLogger(__name__)

_ID = "wandb.json"
_INIT_SECONDS, _FINISH_SECONDS = 60, 120
"""How long the start waits for the server, and the end for what is not sent yet. In between figures are sent by a
process of wandb's own: a network that fails does not hold training up, and what was not sent stays in RUN/wandb."""


def check_installed(project: str | None) -> None:
    """Raise ConfigError if --wandb is given and its package is missing."""
    require(
        project is None or find_spec("wandb") is not None,
        f"--wandb {project} needs the package wandb: pip install 'fastmoco[wandb]', or leave out --wandb",
    )


class WandbBoard:
    """Writer of one run. A restart of the run continues the same one there.

    Args:
        folder: the run folder; its wandb.json has the run's id.
        config: settings and environment in plain values; credentials in URLs are left out.

    Raises:
        ConfigError: wandb cannot start the run, for example without an API key or a network.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # takes more than a second, and few runs use it

        self._picture = wandb.Image
        quiet = wandb.Settings(
            # what wandb collects by itself holds the command line as it was typed, credentials included
            x_disable_meta=True, console="off", disable_git=True, disable_code=True, silent=True,
            init_timeout=_INIT_SECONDS, finish_timeout=_FINISH_SECONDS,
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=config["wandb"], id=_id(folder), name=folder.resolve().name, resume="allow", dir=str(folder),
                config=shareable(config), settings=quiet,
            )  # fmt: skip
        except wandb.Error as error:
            remedy = "WANDB_MODE=offline records on disk, and `wandb sync` sends it later"
            raise ConfigError(f"--wandb {config['wandb']}: {error}; {remedy}, or leave out --wandb") from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Add figures at their `step`."""
        self._run.log(grouped(record), step=record["step"])

    def show(self, name: str, picture: Path, step: int) -> None:
        """Add a picture file at a step."""
        self._run.log({name: self._picture(str(picture))}, step=step)

    def close(self) -> None:
        """Send what is left."""
        import wandb

        try:
            self._run.finish()
        except (wandb.Error, TimeoutError) as error:
            log.warning("Weights & Biases did not get all: %s; `wandb sync` sends what is in the run folder", error)


def _id(folder: Path) -> str:
    path = folder / _ID
    if not path.exists():
        write_whole(path, (json.dumps({"id": secrets.token_hex(6)}) + "\n").encode())
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
