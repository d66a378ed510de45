"""Versions of the software that affects the bytes of a set."""

from __future__ import annotations

from importlib import metadata


def made_by() -> dict[str, str]:
    """Versions of fastmoco and Pillow, for the manifest."""
    # Pillow brings its own libjpeg-turbo, whose version decides the bytes of re-encoded images.
    return {name: _version(name) for name in ("fastmoco", "pillow")}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
