"""The DALI backend: one graph, on a GPU or on the CPU, fed with our draws as arrays.

The GPU half has not been run yet; `docs/pipelines.md` says so as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import nvidia.dali
import nvidia.dali.fn
import nvidia.dali.types
import torch

from pipelines._threads import spread
from pipelines.contract import BadImages
from pipelines.decode import decode
from pipelines.options import PipelineOptions
from pipelines.views import ViewParams, ViewSpec, blur_radius

_VIEWS = ("query", "key")
# DALI's annotations do not know the graphs that its tracer builds
dali: Any = nvidia.dali
fn: Any = nvidia.dali.fn
types: Any = nvidia.dali.types


class DaliBackend:
    """Decode once, then two crops, resizes, blurs and flips, in DALI.

    Args:
        spec: the augmentation.
        batch: images a call.
        device: a CUDA device decodes and augments on it; the CPU has DALI's CPU operators do it.
        pool: threads that look for the culprit when DALI rejects a batch.
        threads: DALI's own threads.
        decoder_load: as of `PipelineOptions`.
    """

    def __init__(
        self,
        spec: ViewSpec,
        batch: int,
        device: torch.device,
        pool: ThreadPoolExecutor,
        threads: int,
        decoder_load: float = PipelineOptions.decoder_load,
    ) -> None:
        self.name = "dali-gpu" if device.type == "cuda" else "dali-cpu"
        self._spec, self._device, self._pool, self._threads = spec, device, pool, threads
        self._decoder_load = decoder_load
        self._graph = self._build(batch)
        self._one: Any = None

    def views(
        self, encoded: Sequence[bytes], sizes: np.ndarray, params: tuple[ViewParams, ViewParams]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `pipelines.contract.Backend.views`."""
        try:
            return self._run(self._graph, encoded, params)
        except RuntimeError as error:
            self._graph = self._build(len(encoded))  # a failed run can leave a graph unusable
            causes = self._culprits(encoded, sizes, params)
            if not causes or (len(causes) == len(encoded) and "cannot be decoded" not in causes[0]):
                raise  # the graph's fault, not the images'
            raise BadImages(causes) from error

    def close(self) -> None:
        """Let the graphs go, and with them DALI's threads and memory."""
        self._graph = self._one = None

    def _build(self, batch: int) -> Any:
        on_gpu = self._device.type == "cuda"
        device_id = None
        if on_gpu:
            device_id = torch.cuda.current_device() if self._device.index is None else self._device.index
        # inputs given to run() need a queue of one; the batches ahead are the pipeline's own thread's business
        options = {"batch_size": batch, "num_threads": self._threads, "device_id": device_id}
        graph = _graph(self._spec, on_gpu, self._decoder_load, prefetch_queue_depth=1, **options)
        graph.build()
        return graph

    def _run(
        self, graph: Any, encoded: Sequence[bytes], params: tuple[ViewParams, ViewParams]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs: dict[str, Any] = {"encoded": [np.frombuffer(data, dtype=np.uint8) for data in encoded]}
        for name, view in zip(_VIEWS, params, strict=True):
            inputs[f"{name}_start"] = np.ascontiguousarray(view.box[:, :2])
            inputs[f"{name}_shape"] = np.ascontiguousarray(view.box[:, 2:])
            inputs[f"{name}_flip"] = view.flip.astype(np.int32)
            if self._spec.blur > 0:
                blurred = view.sigma > 0
                windows = [2 * blur_radius(sigma) + 1 for sigma in view.sigma]
                inputs[f"{name}_blurred"] = blurred
                inputs[f"{name}_sigma"] = np.where(blurred, view.sigma, np.float32(1))
                inputs[f"{name}_window"] = np.where(blurred, windows, 1).astype(np.int32)
        query, key = (torch.from_dlpack(out.as_tensor()) for out in graph.run(**inputs))
        return query, key

    def _culprits(
        self, encoded: Sequence[bytes], sizes: np.ndarray, params: tuple[ViewParams, ViewParams]
    ) -> dict[int, str]:
        """What is wrong with the images of a batch that DALI rejected as a whole, by place.

        The torch backend's decoder is asked first, so that both backends replace the same images; DALI is asked
        one image at a time only when that one finds nothing.
        """

        def cause(slot: int) -> str | None:
            try:
                decode(encoded[slot], (int(sizes[slot, 0]), int(sizes[slot, 1])))
            except ValueError as error:
                return str(error)
            return None

        causes = dict(enumerate(spread(self._pool, cause, len(encoded))))
        if not any(causes.values()):
            causes = {slot: self._alone(encoded[slot], slot, params) for slot in range(len(encoded))}
        return {slot: cause for slot, cause in causes.items() if cause is not None}

    def _alone(self, encoded: bytes, slot: int, params: tuple[ViewParams, ViewParams]) -> str | None:
        """Why DALI rejects an image, or None where it does not."""
        self._one = self._one or self._build(1)
        part = slice(slot, slot + 1)
        views = params[0].take(part), params[1].take(part)
        try:
            self._run(self._one, [encoded], views)
        except RuntimeError as error:
            self._one = None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"DALI rejects it: {lines[-1] if lines else error!r}"
        return None


@dali.pipeline_def(enable_conditionals=True)
def _graph(spec: ViewSpec, on_gpu: bool, decoder_load: float) -> tuple[Any, ...]:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    images = fn.decoders.image(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,  # packing has baked the orientation in
        jpeg_fancy_upsampling=True,  # what libjpeg-turbo does for the torch backend
        **({"hw_decoder_load": decoder_load} if on_gpu else {}),
    )
    return tuple(_view(images, name, spec) for name in _VIEWS)


def _view(images: Any, name: str, spec: ViewSpec) -> Any:
    # a slice, not the resize's own region of interest: that one's filter would see pixels beyond the crop
    crop = fn.slice(
        images,
        start=_numbers(f"{name}_start", types.INT32, 1),
        shape=_numbers(f"{name}_shape", types.INT32, 1),
        axes=(0, 1),
    )
    size = [spec.image_size, spec.image_size]
    view = fn.resize(crop, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
    if spec.blur > 0:
        sigma, window = _numbers(f"{name}_sigma", types.FLOAT, 0), _numbers(f"{name}_window", types.INT32, 0)
        # DALI turns this into a split of the batch: only the images with a blur pay for one
        if _numbers(f"{name}_blurred", types.BOOL, 0):
            view = fn.gaussian_blur(view, sigma=sigma, window_size=window)
    return fn.flip(view, horizontal=_numbers(f"{name}_flip", types.INT32, 0))


def _numbers(name: str, dtype: Any, ndim: int) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim)
