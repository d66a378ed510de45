"""Two random views of packed images on the device, the same ones on every backend.

The names below are imported when they are first used: most need torch and Numba, which take seconds to load, and
checking a flag needs neither. No module may have the name of one of them: its import would put the module in its place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.assembly import build, build_stream
    from pipelines.augmentation import ViewPair, ViewSpec
    from pipelines.contract import LabelledBatch, TwoViewPipeline, TwoViews
    from pipelines.draws import draw
    from pipelines.errors import PipelineError
    from pipelines.labelled import LabelledCrops, LabelledPipeline
    from pipelines.options import PipelineOptions
    from pipelines.order.epoch import EpochOrder
    from pipelines.order.sharded import ShardedOrder
    from pipelines.views import ViewParams

PART_OF = "fastmoco"  # fastmoco looks for this line: other packages have this name, too

__all__ = [
    "EpochOrder",
    "LabelledBatch",
    "LabelledCrops",
    "LabelledPipeline",
    "PipelineError",
    "PipelineOptions",
    "ShardedOrder",
    "TwoViewPipeline",
    "TwoViews",
    "ViewPair",
    "ViewParams",
    "ViewSpec",
    "build",
    "build_stream",
    "draw",
]

_PLACES = {
    "pipelines.augmentation": ("ViewPair", "ViewSpec"),
    "pipelines.assembly": ("build", "build_stream"),
    "pipelines.contract": ("LabelledBatch", "TwoViewPipeline", "TwoViews"),
    "pipelines.draws": ("draw",),
    "pipelines.errors": ("PipelineError",),
    "pipelines.labelled": ("LabelledCrops", "LabelledPipeline"),
    "pipelines.options": ("PipelineOptions",),
    "pipelines.order.epoch": ("EpochOrder",),
    "pipelines.order.sharded": ("ShardedOrder",),
    "pipelines.views": ("ViewParams",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # __getattr__ is not asked again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
