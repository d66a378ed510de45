"""Two random views of packed images on the device, the same ones on every backend."""

from pipelines.build import build, build_stream
from pipelines.contract import TwoViewPipeline, TwoViews
from pipelines.draws import draw
from pipelines.errors import PipelineError
from pipelines.labelled import LabelledBatch, LabelledCrops, LabelledPipeline
from pipelines.options import PipelineOptions
from pipelines.order.epoch import EpochOrder
from pipelines.order.sharded import ShardedOrder
from pipelines.views import ViewParams, ViewSpec

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
    "ViewParams",
    "ViewSpec",
    "build",
    "build_stream",
    "draw",
]
