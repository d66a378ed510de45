"""Versions of the software that affects the bytes of a set."""

from __future__ import annotations


def made_by(*more: str) -> dict[str, str]:
    """Versions of fastmoco, and of the packages that decode and encode and `more` of them, for the manifest."""
    # Both bring their own libjpeg-turbo, whose version decides the bytes of re-encoded images.
    return {name: version_of(name) for name in ("fastmoco", "pillow", "simplejpeg", *more)}


def version_of(package: str) -> str:
    """Version of an installed package."""
    # here: it takes longer to import than all else that checking a flag needs
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
