"""Colours of both views of a batch on a GPU: one Triton launch where it is supported, torch's operations elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

from pipelines.augmentation import ViewPair, ViewSpec
from pipelines.colour import Colours, finish
from pipelines.views import ViewParams

Implementation = Literal["triton", "torch"]


class DeviceColours:
    """Jitter, grey, solarization and normalisation of a pipeline's batches on its GPU.

    Args:
        spec: mean and standard deviation, and whether views are solarized; or one for each view.
        dtype: of the results; the arithmetic is float32 whatever it is.
        device: of the views.
        implementation: None for the fastest that supports the device and the dtype.

    Attributes:
        implementation: the one in use.
    """

    def __init__(
        self,
        spec: ViewSpec | ViewPair,
        dtype: torch.dtype,
        device: torch.device,
        implementation: Implementation | None = None,
    ) -> None:
        self.implementation: Implementation = implementation or choose(device, dtype)
        self._pair, self._dtype, self._device = ViewPair.of(spec), dtype, device

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, params: tuple[ViewParams, ViewParams]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour a batch, on the current stream.

        Args:
            query: uint8[B, H, W, C], contiguous, on the device.
            key: likewise.
            params: of the queries and of the keys; only their colours are read.

        Returns:
            Two [B, C, H, W] tensors with channels-last strides, in new memory.
        """
        if self.implementation == "torch":
            of_query, of_key = (
                finish(view, of_view, spec, self._dtype)
                for view, of_view, spec in zip((query, key), params, self._pair, strict=True)
            )
            return of_query, of_key
        from pipelines.kernels.colours_triton import paint

        pixels = query.shape[1] * query.shape[2]
        colours = [Colours.of(view, spec, pixels) for view, spec in zip(params, self._pair, strict=True)]
        # pinned, so that the copy is asynchronous; torch keeps the memory until the copy is done
        squared = self._pair.channels**2
        maps = torch.empty((2, len(query), 2 * squared + 1), pin_memory=self._device.type == "cuda")
        numbers = maps.numpy()
        for of_view, view in zip(colours, numbers, strict=True):
            view[:, :squared] = of_view.linear.reshape(-1, squared)
            view[:, squared:-1] = of_view.gain.reshape(-1, squared)
            view[:, -1] = of_view.solarize
        low, high = colours[0].low.tolist(), colours[0].high.tolist()
        solarize = any(spec.solarize > 0 for spec in self._pair)
        outs = paint(query, key, maps.to(self._device, non_blocking=True), low, high, self._dtype, solarize)
        of_query, of_key = (out.permute(0, 3, 1, 2) for out in outs)
        return of_query, of_key


def choose(device: torch.device, dtype: torch.dtype) -> Implementation:
    """Triton on NVIDIA GPUs since Ampere for float32, float16 and bfloat16, where it is installed; else torch."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "torch"
    serves = dtype in (torch.float32, torch.float16, torch.bfloat16)
    return "triton" if serves and find_spec("triton") else "torch"
