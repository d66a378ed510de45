"""Access to pycocotools, which the extra `detect` installs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fastmoco.detection.errors import DetectionError

_REMEDY = "pycocotools is not installed; it comes with the extra: pip install 'fastmoco[detect]'"


def masks() -> ModuleType:
    """The module for outlines and run-length codes; raises DetectionError if pycocotools is missing."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise DetectionError(_REMEDY) from error
    return mask


def evaluators() -> tuple[Any, Any]:
    """The classes COCO and COCOeval; raises DetectionError if pycocotools is missing."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError as error:
        raise DetectionError(_REMEDY) from error
    return COCO, COCOeval
