"""Two random views of packed images on the device, the same ones on every backend."""

from pipelines._labelled import LabelledBatch
from pipelines.build import build, build_stream
from pipelines.contract import TwoViewPipeline, TwoViews
from pipelines.draws import ViewParams, draw
from pipelines.errors import PipelineError
from pipelines.labelled import LabelledCrops, LabelledPipeline
from pipelines.order.epoch import EpochOrder
from pipelines.order.sharded import ShardedOrder
from pipelines.views import ViewSpec

__all__ = [
    "EpochOrder",
    "LabelledBatch",
    "LabelledCrops",
    "LabelledPipeline",
    "PipelineError",
    "ShardedOrder",
    "TwoViewPipeline",
    "TwoViews",
    "ViewParams",
    "ViewSpec",
    "build",
    "build_stream",
    "draw",
]
