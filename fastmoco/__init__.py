"""fastmoco: Momentum Contrast pretraining at the speed of the hardware."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fastmoco")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
