"""The torch backend: libjpeg-turbo and torchvision's uint8 kernels in threads of this process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from pipelines.blur import gaussian_blur
from pipelines.contract import BadImages
from pipelines.draws import ViewParams
from pipelines.views import ViewSpec


class TorchBackend:
    """Decode once, then crop, resize, blur and flip twice, one image a thread at a time.

    Args:
        spec: the augmentation.
        pool: threads whose torch operations run on one core each (`pipelines._threads.worker_pool`).
        pinned: whether the batches go on to a CUDA device.
    """

    name = "torch"

    def __init__(self, spec: ViewSpec, pool: ThreadPoolExecutor, *, pinned: bool) -> None:
        self._size, self._pool, self._pinned = spec.image_size, pool, pinned

    def views(
        self, encoded: Sequence[bytes], sizes: np.ndarray, params: tuple[ViewParams, ViewParams]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `pipelines.contract.Backend.views`."""
        shape = (len(encoded), self._size, self._size, 3)
        query, key = (torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned) for _ in range(2))

        def both(slot: int) -> str | None:
            try:
                image = decode(encoded[slot], (int(sizes[slot, 0]), int(sizes[slot, 1])))
            except ValueError as error:
                return str(error)
            for out, view in ((query, params[0]), (key, params[1])):
                make_view(image, view, slot, out[slot])
            return None

        causes = list(self._pool.map(both, range(len(encoded))))
        bad = {slot: cause for slot, cause in enumerate(causes) if cause is not None}
        if bad:
            raise BadImages(bad)
        return query, key

    def close(self) -> None:
        """Nothing to give back: the pool is the pipeline's."""


def decode(encoded: bytes, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Decode a JPEG in full, without turning it by its EXIF orientation.

    Args:
        encoded: the file.
        size: the height and width that it must have.

    Returns:
        uint8[3, H, W] with channels-last strides.

    Raises:
        ValueError: the bytes are no JPEG that can be decoded, or the size differs.
    """
    try:
        # bytes cannot be written to, which decoding does not do; a copy is the cheap way to say so
        image = decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"cannot be decoded: {str(error).splitlines()[0] if str(error) else error!r}") from None
    assert isinstance(image, torch.Tensor)  # a list comes back only for a list
    if size is not None and tuple(image.shape[1:]) != tuple(size):
        raise ValueError(f"is {image.shape[1]}x{image.shape[2]} pixels, but the index says {size[0]}x{size[1]}")
    return image


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased bilinear resize of uint8[3, H, W] with channels-last strides to uint8[3, height, width]."""
    size = [height, width]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def make_view(image: torch.Tensor, params: ViewParams, slot: int, out: torch.Tensor) -> None:
    """Crop, resize, blur and flip.

    Args:
        image: uint8[3, H, W] with channels-last strides.
        params: the batch's parameters.
        slot: the image's place in the batch.
        out: uint8[S, S, 3], written to.
    """
    top, left, height, width = params.box[slot].tolist()
    size = out.shape[0]
    view = resize(image[:, top : top + height, left : left + width], size, size).permute(1, 2, 0)
    sigma = float(params.sigma[slot])
    if sigma > 0:
        view = torch.from_numpy(gaussian_blur(view.numpy(), sigma))
    out.copy_(view.flip(1) if params.flip[slot] else view)
