"""How this process deals with memory that its images give back."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 << 20  # bytes; the C library takes no larger threshold


def keep_freed_memory() -> None:
    """Have the C library keep the memory of one image for the next one.

    By default it returns large blocks at once, and the kernel clears every page again at its next use: a sixth of
    the time that a photograph takes to be resized. Nothing changes where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 8 * _LARGEST)
