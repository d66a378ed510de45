"""Python and the packages that training needs: versions, and whether they can be imported."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from fastmoco.doctor.findings import Finding, version_numbers

NEEDED = {"torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "numba": "numba", "Pillow": "PIL"}
"""Packages and their modules: those that fail to import when their versions do not fit together."""
OTHERS = ("simplejpeg", "webdataset", "rich", "tensorboard", "safetensors")
"""Further packages that training needs; named only where they are missing or too old."""
EXTRAS = {
    "s3": ("s3fs", "shard sets and images at s3:// URLs"),
    "parquet": ("pyarrow", "packing from Parquet tables"),
    "imagenet": ("scipy", "the labels of ILSVRC2012's validation set"),
    "formats": ("pillow_heif", "packing HEIC, JPEG XL and camera raws"),
    "deep": ("imagecodecs", "packing and reading 16-bit images"),
    "zip": ("deflate", "packing deflated zips faster"),
    "lmdb": ("lmdb", "packing from LMDB databases"),
    "ray": ("ray", "packing on a Ray cluster"),
    "detect": ("pycocotools", "fastmoco detect"),
    "wandb": ("wandb", "fastmoco train --wandb"),
    "plot": ("matplotlib", "fastmoco runs --png"),
    "map": ("openTSNE", "t-SNE by fastmoco map"),
    "faiss": ("faiss", "fastmoco embed --index"),
    "timm": ("timm", "encoders of timm, as --arch timm:convnext_tiny"),
}
"""Optional dependencies of fastmoco: a module of each, and what needs it."""


def packages() -> Iterator[Finding]:
    """Python, fastmoco's requirements, and its extras."""
    yield python(sys.version_info[:3])
    least = least_versions()
    for name, module in NEEDED.items():
        yield package(name, _version(name), least.get(name.lower(), ""), _import_error(module))
    others = (package(name, _version(name), least.get(name, ""), None) for name in OTHERS)
    yield from (found for found in others if found.level != "ok")
    for extra, (module, use) in EXTRAS.items():
        yield of_extra(extra, use, f"'fastmoco[{extra}]'", find_spec(module) is not None)
    yield credentials(os.environ, Path(os.path.expanduser("~")))


def python(version: tuple[int, ...]) -> Finding:
    """Python's version."""
    text = f"{'.'.join(map(str, version))}, {platform.system()} {platform.machine()}"
    if version < (3, 10):
        return Finding("Python", text, "stop", "use Python 3.10 or later")
    return Finding("Python", text)


def package(name: str, version: str | None, least: str, error: str | None) -> Finding:
    """A package that training needs.

    Args:
        name: On PyPI.
        version: Installed version; None where it is not installed.
        least: Oldest version that fastmoco supports; empty if any.
        error: Why its module cannot be imported, or None.
    """
    wanted = f"'{name}>={least}'" if least else name
    if version is None:
        return Finding(name, "not installed", "stop", f"pip install {wanted}")
    if least and version_numbers(version) < version_numbers(least):
        text = f"{version}, older than {least}, the oldest that fastmoco supports"
        return Finding(name, text, "stop", f"pip install -U {wanted}")
    if error is not None:
        remedy = f"install versions that fit together: pip install --upgrade --force-reinstall {wanted}"
        return Finding(name, f"{version}, but it cannot be imported ({error})", "stop", remedy)
    return Finding(name, version)


def of_extra(name: str, use: str, package: str, installed: bool) -> Finding:
    """An optional dependency: what needs it, and what pip is to install."""
    if installed:
        return Finding(f"extra {name}", f"installed ({use})")
    return Finding(f"extra {name}", f"not installed, needed for {use}", "note", f"pip install {package}")


def credentials(environment: Mapping[str, str], home: Path) -> Finding:
    """Whether there are credentials for S3. Neither their values nor their validity are looked at."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    found = [name for name in names if environment.get(name)]
    found += [f"~/.aws/{name}" for name in ("credentials", "config") if (home / ".aws" / name).is_file()]
    if found:
        return Finding("S3 access", f"configured by {' and '.join(found)}; not tried")
    remedy = "for buckets that are not public: aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return Finding("S3 access", "no credentials in the environment or in ~/.aws", "note", remedy)


def least_versions() -> dict[str, str]:
    """The oldest supported version of each requirement of the installed fastmoco, by its name in lower case."""
    try:
        lines = metadata.requires("fastmoco") or []
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return {}
    found = [re.match(r"([\w-]+)>=([\w.]+)$", line) for line in lines]
    return {match[1].lower(): match[2] for match in found if match}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str | None:
    try:
        import_module(module)
    except Exception as error:  # a library that does not fit another's raises anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None
