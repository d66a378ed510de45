"""DALI's graph of one or two views, fed with draws as arrays; several runs of it may be in flight.

Every image must pass `pipelines.dali_input` first, or the process may end. A run that fails leaves the others as they
are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import nvidia.dali
import nvidia.dali.fn
import nvidia.dali.tensors
import nvidia.dali.types
import torch

from pipelines.augmentation import BLUR_RADIUS_IN_SIGMAS, ViewPair, ViewSpec
from pipelines.centre import CentreParams
from pipelines.views import CENTRE, TWO_VIEWS, ViewParams

# DALI's annotations do not know the graphs that its tracer builds
dali: Any = nvidia.dali
fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types
Params = Sequence[ViewParams | CentreParams]
"""The parameters of each of a graph's views."""


class Graph:
    """A built graph and its runs, which finish in the order in which they were started.

    Args:
        spec: the augmentation, or one for each of two views.
        batch: the most images of a run.
        device: a CUDA device, which decodes and augments, or the CPU.
        threads: of DALI's pool, and of the GPU decoder's own.
        decoder_load: share of a batch for the GPU's JPEG engine, 0 to 1.
        size_hint: height and width for which the JPEG engine allocates memory at the start.
        views: `TWO_VIEWS`, `ONE_VIEW` or `CENTRE` of `pipelines.views`.
    """

    def __init__(
        self,
        spec: ViewSpec | ViewPair,
        batch: int,
        device: torch.device,
        threads: int,
        decoder_load: float,
        size_hint: tuple[int, int] | None = None,
        views: tuple[str, ...] = TWO_VIEWS,
    ) -> None:
        self._specs, self._device = dict(zip(views, ViewPair.of(spec), strict=False)), device
        device_id = None
        if device.type == "cuda":
            device_id = torch.cuda.current_device() if device.index is None else device.index
        # The dynamic executor queues every scheduled run; a queue depth above 1 would only make the first
        # `schedule_run` start several. Outputs own their memory: later runs do not write to it.
        options = {"batch_size": batch, "num_threads": threads, "device_id": device_id}
        on_gpu = device.type == "cuda"
        self._pipe: Any = _graph(
            self._specs, on_gpu, decoder_load, size_hint, prefetch_queue_depth=1, exec_dynamic=True, **options
        )
        self._pipe.build()
        # The images of the runs in flight and of the last one that finished. DALI's threads drop DALI's references to
        # them; if those were the last, each would have to take the GIL there, 256 times a batch, and `close`, which
        # holds the GIL while it waits for these threads, would never return.
        self._running: deque[list[Any]] = deque()
        self._ended: deque[list[Any]] = deque()

    def start(self, encoded: Sequence[bytes], params: Params) -> None:
        """Start a run in DALI's threads."""
        images = [nvidia.dali.tensors.TensorCPU(np.frombuffer(data, dtype=np.uint8)) for data in encoded]
        self._running.append(images)
        self._pipe.feed_input("encoded", images)
        for (name, spec), view in zip(self._specs.items(), params, strict=True):
            for field, numbers in _numbers_of(view, spec).items():
                self._pipe.feed_input(f"{name}_{field}", numbers)
        self._pipe.schedule_run()

    def finish(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest run; its views, uint8[B, S, S, C] each, on a GPU in the current stream's order.

        They are DALI's own memory, which it takes back, without regard to torch's streams, when the tensors are freed.

        Raises:
            RuntimeError: the run failed.
        """
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        self._ended.append(self._running.popleft())
        outs = self._pipe.outputs(stream)
        while len(self._ended) > 1:
            self._ended.popleft()
        return tuple(torch.from_dlpack(out.as_tensor()) for out in outs)

    def drain(self) -> None:
        """Wait for the runs in flight and discard their views."""
        while self._running:
            with suppress(RuntimeError):  # of a run whose views nobody wants
                self.finish()

    def close(self) -> None:
        """Wait for the runs in flight, discard their views, and end DALI's threads."""
        self.drain()
        self._pipe = None
        self._ended.clear()


def _numbers_of(view: ViewParams | CentreParams, spec: ViewSpec) -> dict[str, np.ndarray]:
    if isinstance(view, CentreParams):
        return {"start": view.start, "end": view.end}
    numbers = {
        "start": np.ascontiguousarray(view.box[:, :2]),
        "shape": np.ascontiguousarray(view.box[:, 2:]),
        "flip": view.flip.astype(np.int32),
    }
    if spec.reorients:
        numbers["vertical_flip"] = view.vertical_flip.astype(np.int32)
    if spec.turns > 0:
        numbers["transpose"] = view.transpose
    if spec.blur > 0:
        blurred = view.sigma > 0
        # `pipelines.views.blur_radius`, vectorised
        windows = 2 * np.ceil(BLUR_RADIUS_IN_SIGMAS * view.sigma.astype(np.float64)) + 1
        numbers["blurred"] = blurred
        numbers["sigma"] = np.where(blurred, view.sigma, np.float32(1))
        numbers["window"] = np.where(blurred, windows, 1).astype(np.int32)
    return numbers


@dali.pipeline_def(enable_conditionals=True)
def _graph(
    specs: dict[str, ViewSpec], on_gpu: bool, decoder_load: float, size_hint: tuple[int, int] | None
) -> tuple[Any, ...]:
    # copying a batch of 256 would hold the GIL for 12 ms
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
    engine: dict[str, Any] = {"hw_decoder_load": decoder_load} if on_gpu else {}
    if on_gpu and size_hint is not None:
        engine |= {"preallocate_height_hint": size_hint[0], "preallocate_width_hint": size_hint[1]}
    images = fn.decoders.image(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,  # packing has baked the orientation in
        jpeg_fancy_upsampling=True,  # what libjpeg-turbo does for the torch backend
        **engine,
    )
    make = _centre if tuple(specs) == CENTRE else _view
    return tuple(_of_channels(make(images, name, spec), spec) for name, spec in specs.items())


def _of_channels(view: Any, spec: ViewSpec) -> Any:
    # all three channels of a grey image are equal. Here and not by torch, whose copy on a GPU would still read the
    # memory of DALI's tensor when that is freed
    return view[:, :, :1] if spec.channels == 1 else view


def _centre(images: Any, name: str, spec: ViewSpec) -> Any:
    # a region of interest, whose filter sees the pixels around it: the image is resized before it is cropped
    region = {f"roi_{side}": _source(f"{name}_{side}", types.FLOAT, 1) for side in ("start", "end")}
    return _resize(images, spec, **region)


def _view(images: Any, name: str, spec: ViewSpec) -> Any:
    # a slice and no region of interest: the image is cropped before it is resized
    crop = fn.slice(
        images,
        start=_source(f"{name}_start", types.INT32, 1),
        shape=_source(f"{name}_shape", types.INT32, 1),
        axes=(0, 1),
    )
    view = _resize(crop, spec)
    if spec.blur > 0:
        sigma, window = _source(f"{name}_sigma", types.FLOAT, 0), _source(f"{name}_window", types.INT32, 0)
        # DALI turns this into a split of the batch: only the images with a blur pay for one
        if _source(f"{name}_blurred", types.BOOL, 0):
            view = fn.gaussian_blur(view, sigma=sigma, window_size=window)
    flips = {"horizontal": _source(f"{name}_flip", types.INT32, 0)}
    if spec.reorients:
        flips["vertical"] = _source(f"{name}_vertical_flip", types.INT32, 0)
    view = fn.flip(view, **flips)
    return _transposed(view, name) if spec.turns > 0 else view


def _transposed(view: Any, name: str) -> Any:
    if _source(f"{name}_transpose", types.BOOL, 0):
        view = fn.transpose(view, perm=[1, 0, 2], output_layout="HWC")  # DALI would call it WHC
    return view


def _resize(images: Any, spec: ViewSpec, **region: Any) -> Any:
    size = [spec.image_size, spec.image_size]
    return fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True, **region)


def _source(name: str, dtype: Any, ndim: int) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim)
