"""fastmoco: Momentum Contrast pretraining at the speed of the hardware."""

from typing import Any

from fastmoco import _packages

__all__ = ["__version__"]

__version__: str  # by __getattr__: importing importlib.metadata takes longer than all else that checking a flag needs

_packages.end_on_interrupt()
# before any module imports `shards` or `pipelines`: a foreign package of that name would fail with an error of its own
_packages.check()


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module 'fastmoco' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fastmoco")
    except PackageNotFoundError:  # imported from a source tree that is not installed
        return "0+unknown"
