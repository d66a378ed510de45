"""The torch backend: libjpeg-turbo and compiled loops in threads of this process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pipelines import _kernels
from pipelines._threads import spread
from pipelines.blur import NONE, gaussian
from pipelines.contract import BadImages
from pipelines.decode import SHRINKS, Memory, decode
from pipelines.draws import ViewParams
from pipelines.views import ViewSpec


class TorchBackend:
    """Decode once, then crop, resize, blur and flip twice, one image a thread at a time.

    Args:
        spec: the augmentation.
        pool: threads (`pipelines._threads.worker_pool`).
        pinned: whether the batches go on to a CUDA device.
        scaled: whether large images are shrunk in decoding (see `shrinkage`).
    """

    name = "torch"

    def __init__(self, spec: ViewSpec, pool: ThreadPoolExecutor, *, pinned: bool, scaled: bool = True) -> None:
        self._size, self._pool, self._pinned, self._scaled = spec.image_size, pool, pinned, scaled
        self._memory = Memory()
        self._room = torch.empty(0), torch.empty(0)

    def views(
        self, encoded: Sequence[bytes], sizes: np.ndarray, params: tuple[ViewParams, ViewParams]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `pipelines.contract.Backend.views`."""
        query, key = self._levels(len(encoded))
        outs = (query.numpy(), params[0]), (key.numpy(), params[1])

        def both(slot: int) -> str | None:
            height, width = sizes[slot].tolist()
            shrink = shrinkage([view.box[slot] for view in params], self._size) if self._scaled else 1
            try:
                image = decode(encoded[slot], (height, width), shrink, self._memory)
            except ValueError as error:
                return str(error)
            for out, view in outs:
                make_view(image, view, slot, out[slot], 1 if len(image) == height else shrink)
            return None

        causes = spread(self._pool, both, len(encoded))
        bad = {slot: cause for slot, cause in enumerate(causes) if cause is not None}
        if bad:
            raise BadImages(bad)
        return query, key

    def _levels(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8[B, S, S, 3] twice; the same memory each time, but where it is copied to a device meanwhile."""
        if self._pinned or len(self._room[0]) != count:
            shape = (count, self._size, self._size, 3)
            query, key = (torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned) for _ in range(2))
            self._room = query, key
        return self._room

    def close(self) -> None:
        """Nothing to give back: the pool is the pipeline's."""


def shrinkage(boxes: Sequence[np.ndarray], size: int) -> int:
    """By how much an image may be shrunk in decoding: each crop keeps twice the view's size.

    So the resizing filter has the last word, and views stay near those of a full decode.

    Args:
        boxes: int32[4] each: top, left, height, width.
        size: side of the views.
    """
    shortest = min(int(box[2:].min()) for box in boxes)
    return next((shrink for shrink in SHRINKS if shortest >= 2 * size * shrink), 1)


def make_view(image: np.ndarray, params: ViewParams, slot: int, out: np.ndarray, shrink: int = 1) -> None:
    """Crop, resize, blur and flip; rounded once.

    Args:
        image: uint8[H, W, 3], contiguous.
        params: the batch's parameters.
        slot: the image's place in the batch.
        out: uint8[S, S, 3], contiguous, written to.
        shrink: by how much the image's sides were divided in decoding; crops are in pixels of the full image.
    """
    top, left, height, width = (params.box[slot] / shrink).tolist()
    sigma = float(params.sigma[slot])
    window = gaussian(sigma) if sigma > 0 else NONE
    flat, rows = image.reshape(len(image), -1), out.reshape(len(out), -1)
    _kernels.make_view(flat, top, left, height, width, window, bool(params.flip[slot]), rows)
