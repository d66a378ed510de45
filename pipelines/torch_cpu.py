"""The torch backend: libjpeg-turbo and compiled loops in threads of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from pipelines._threads import HostMemory, spread
from pipelines.augmentation import ViewPair, ViewSpec
from pipelines.colour import Colours
from pipelines.contract import BadImages
from pipelines.decode import SHRINKS, Memory, decode
from pipelines.deep import decode_16, steps
from pipelines.kernels import deep as _deep
from pipelines.kernels import views as _kernels
from pipelines.views import NONE, ViewParams, gaussian
from shards.format.scaling import Scaling


class TorchBackend:
    """Decode once, then make both views up to their colours; each thread works on one image at a time.

    Args:
        spec: the augmentation, or one for each view.
        pool: threads (`pipelines._threads.worker_pool`).
        pinned: whether batches are copied to a CUDA device, which is asynchronous from page-locked memory only.
        coloured: whether to apply the colours as well, while a view is in the core's cache; with 16 bits it must be.
        scaled: whether to shrink large images in decoding (see `shrinkage`).
    """

    name = "torch"
    depth = 1
    """A batch keeps all threads busy by itself."""

    def __init__(
        self,
        spec: ViewSpec | ViewPair,
        pool: ThreadPoolExecutor,
        *,
        pinned: bool,
        coloured: bool = False,
        scaled: bool = True,
    ) -> None:
        self._pair, self._size, self._channels = ViewPair.of(spec), spec.image_size, spec.channels
        self._pool, self._pinned, self._scaled = pool, pinned, scaled
        self._memory = Memory()
        self._room = torch.empty(0), torch.empty(0)
        self._lent = HostMemory() if coloured else None
        self._submitted: deque[tuple[Any, ...]] = deque()  # arguments of `views`

    def submit(
        self,
        encoded: Sequence[bytes],
        sizes: np.ndarray,
        params: tuple[ViewParams, ViewParams],
        scalings: Sequence[Scaling] | None = None,
    ) -> None:
        """See `pipelines.contract.Backend.submit`; the work is done in `collect`."""
        self._submitted.append((encoded, sizes, params, scalings))

    def collect(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `pipelines.contract.Backend.collect`."""
        try:
            views = self.views(*self._submitted[0])
        except BadImages:
            self.drop()
            raise
        self._submitted.popleft()
        return views

    def drop(self) -> None:
        """See `pipelines.contract.Backend.drop`."""
        self._submitted.clear()

    def views(
        self,
        encoded: Sequence[bytes],
        sizes: np.ndarray,
        params: tuple[ViewParams, ViewParams],
        scalings: Sequence[Scaling] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the views of a batch at once; arguments as of `submit`, the result as of `collect`."""
        # both views of an image in one job: it is decoded once and still in the cache for the second view
        query, key = self._outs(len(encoded))
        coloured, pixels = self._lent is not None, self._size**2
        colours = [
            Colours.of(view, spec, pixels) if coloured else None for view, spec in zip(params, self._pair, strict=True)
        ]
        outs = list(zip((query.numpy(), key.numpy()), params, colours, strict=True))

        def both(slot: int) -> str | None:
            shrink = shrinkage([view.box[slot] for view in params], self._size) if self._scaled else 1
            scaling = None if scalings is None else scalings[slot]
            try:
                make = decoded(encoded[slot], sizes[slot].tolist(), shrink, self._memory, self._channels, scaling)
            except ValueError as error:
                return str(error)
            for out, view, colour in outs:
                make(view, slot, out[slot], colours=colour)
            return None

        causes = spread(self._pool, both, len(encoded))
        bad = {slot: cause for slot, cause in enumerate(causes) if cause is not None}
        if bad:
            raise BadImages(bad)
        return query, key

    def _outs(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, S, C] twice. Levels reuse their memory, unless the last batch may still be on its way to a device."""
        if self._lent is not None:
            shape = (count, self._size, self._size, self._channels)
            return self._lent.lend(shape), self._lent.lend(shape)
        if self._pinned or len(self._room[0]) != count:
            shape = (count, self._size, self._size, self._channels)
            query, key = (torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned) for _ in range(2))
            self._room = query, key
        return self._room

    def close(self) -> None:
        """Nothing to release: the pool belongs to the pipeline."""


def shrinkage(boxes: Sequence[np.ndarray], size: int) -> int:
    """The factor by which an image may be shrunk in decoding, so that each crop keeps at least twice the view's size.

    Twice, so that the resize still filters and views stay close to those of a full decode.

    Args:
        boxes: int32[4] each: top, left, height, width.
        size: side of a view.
    """
    shortest = min(int(box[2:].min()) for box in boxes)
    return next((shrink for shrink in SHRINKS if shortest >= 2 * size * shrink), 1)


def decoded(
    encoded: bytes,
    size: tuple[int, int],
    shrink: int,
    memory: Memory,
    channels: int,
    scaling: Scaling | None,
) -> Callable[..., None]:
    """Decode an image; arguments as of `decode`, and the scaling of its values if it has 16 bits.

    Returns:
        `make_view` or `make_view_16` of this image.

    Raises:
        ValueError: it cannot be decoded, or has another size.
    """
    if scaling is not None:
        return partial(make_view_16, decode_16(encoded, size, channels), scaling)
    image = decode(encoded, size, shrink, memory, channels)
    # rare kinds of JPEG are decoded in full size although a shrunken one was asked for
    return partial(make_view, image, shrink=1 if len(image) == size[0] else shrink)


def make_view(
    image: np.ndarray, params: ViewParams, slot: int, out: np.ndarray, shrink: int = 1, colours: Colours | None = None
) -> None:
    """Crop, resize, blur, flip and turn, and apply the colours if given.

    Args:
        image: uint8[H, W, C], contiguous.
        params: the batch's parameters.
        slot: the image's place in the batch.
        out: [S, S, C], contiguous, written to: uint8, or float32 with colours.
        shrink: factor by which decoding shrank the image's sides; crops are in pixels of the full image.
        colours: the batch's colours, or None.
    """
    flat, rows = image.reshape(len(image), -1), out.reshape(len(out), -1)
    view = (flat, *_geometry(params, slot, shrink))
    if colours is None:
        _kernels.make_view(*view, rows)
    else:
        maps = colours.linear[slot], colours.gain[slot], colours.low, colours.high, bool(colours.solarize[slot])
        _kernels.make_coloured_view(*view, *maps, rows)


def make_view_16(
    image: np.ndarray,
    scaling: Scaling,
    params: ViewParams,
    slot: int,
    out: np.ndarray,
    colours: Colours | None = None,
) -> None:
    """`make_view` of an image of 16 bits; nothing is rounded to levels.

    Args:
        image: uint16[H, W, C], or uint16[H, W, 1] of a grey image.
        scaling: of its values.
        params: the batch's parameters.
        slot: the image's place in the batch.
        out: float32[S, S, C], contiguous, written to: levels, or normalised values with colours.
        colours: the batch's colours, or None.
    """
    size, channels = out.shape[1:]
    of_channels = steps(scaling, channels)
    if image.shape[2] < channels:  # a grey image; in a set of grey ones it is scaled once, and then repeated
        if len(scaling.low) == 1:
            of_channels = steps(scaling, 1)
        else:
            image = np.repeat(image, channels, axis=2)
    levels = np.empty((size, size, image.shape[2]), np.float32)
    flat = image.reshape(len(image), -1)
    _deep.make_view(flat, of_channels, *_geometry(params, slot), levels.reshape(size, -1))
    if colours is None:
        out[:] = levels
        return
    if levels.shape != out.shape:
        levels = np.ascontiguousarray(np.broadcast_to(levels, out.shape))  # a tenth of numpy.repeat's time
    maps = colours.linear[slot], colours.gain[slot], colours.low, colours.high, bool(colours.solarize[slot])
    _kernels.paint(levels.reshape(-1), *maps, out.reshape(-1))


def _geometry(params: ViewParams, slot: int, shrink: int = 1) -> tuple[Any, ...]:
    """What the kernels take of a view's parameters: its crop, the blur's window, and its flips."""
    sigma = float(params.sigma[slot])
    window = gaussian(sigma) if sigma > 0 else NONE
    orientation = (bool(each[slot]) for each in (params.flip, params.vertical_flip, params.transpose))
    return *(params.box[slot] / shrink).tolist(), window, *orientation
