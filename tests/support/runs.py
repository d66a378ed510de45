"""Run folders, checkpoints, and an encoder that is small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torchvision.models.resnet import BasicBlock

from fastmoco.model import encoders


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def narrow_resnet10(share: float) -> Callable[..., Any]:
    """A builder of resnet10 with a share of its channels: tiny, but with every part of a ResNet."""
    return partial(encoders.WideResNet, share, BasicBlock, [1, 1, 1, 1])


@contextmanager
def resnet10_of(share: float) -> Iterator[None]:
    """Have a share of resnet10's channels, for fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(share))
        yield


class PickledCode:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)
