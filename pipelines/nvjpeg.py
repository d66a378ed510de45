"""Whether nvJPEG can be loaded. Without it DALI's GPU decoder falls back to the CPU without an error."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

import torch

# oldest nvJPEG for which nvImageCodec registers its GPU decoders, by CUDA's major version
_OLDEST = {12: (12, 1, 0), 13: (13, 0, 0)}


def problem(folders: list[Path] | None = None) -> str | None:
    """Load nvJPEG; nvImageCodec, which looks it up by the same name, then finds it loaded.

    Args:
        folders: searched first, before the system's; None for those of NVIDIA's packages and of the CUDA toolkit.

    Returns:
        Why it cannot be used, with the remedy, or None.
    """
    major = int((torch.version.cuda or "13").split(".")[0])
    name = f"libnvjpeg.so.{major}"
    files = [folder / name for folder in (_folders(major) if folders is None else folders)]
    package = "nvidia-nvjpeg" if major >= 13 else f"nvidia-nvjpeg-cu{major}"
    try:
        library = ctypes.CDLL(str(next((file for file in files if file.is_file()), name)))
    except OSError as error:
        return f"nvJPEG cannot be loaded ({error}): pip install {package}"
    version = _version(library)
    oldest = _OLDEST.get(major, (0, 0, 0))
    if version < oldest:
        return f"nvJPEG {_dotted(version)} is older than {_dotted(oldest)}: pip install --upgrade {package}"
    return None


def _folders(major: int) -> list[Path]:
    spec = find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    packages = [place / folder for place in places for folder in (f"cu{major}/lib", "nvjpeg/lib")]
    return [*packages, Path("/usr/local/cuda/lib64")]


def _version(library: ctypes.CDLL) -> tuple[int, ...]:
    numbers = []
    for kind in range(3):  # libraryPropertyType: major, minor, patch
        number = ctypes.c_int(0)
        library.nvjpegGetProperty(kind, ctypes.byref(number))
        numbers.append(number.value)
    return tuple(numbers)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
