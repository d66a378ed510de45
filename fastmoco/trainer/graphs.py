"""--cuda-graphs: the passes of the encoders as CUDA graphs, each of which the host launches at once.

With few images per GPU the host needs longer to launch a step's thousand kernels than the GPU to run them. Not yet run
on a GPU.
"""

from __future__ import annotations

import torch

from fastmoco.flags import require
from fastmoco.model.moco import MoCo


def check_device(device: torch.device) -> None:
    """Raise ConfigError if the device has no graphs."""
    require(
        device.type == "cuda" and torch.version.hip is None,
        f"--cuda-graphs needs an NVIDIA GPU, and this run uses {'an AMD GPU' if torch.version.hip else 'a CPU'}; "
        "leave it out",
    )


def capture_encoders(model: MoCo, images: torch.Tensor, dtype: torch.dtype | None) -> None:
    """Replace the passes of both encoders by graphs; their weights and BatchNorm statistics stay as they are.

    Call it in training mode, before the encoders are distributed: DistributedDataParallel then sees one backward pass,
    whose gradients arrive together, and averages them after it.

    Args:
        model: The model, on a GPU.
        images: Images [B, C, H, W] of the shape, dtype and strides of every batch.
        dtype: Autocast dtype, None for float32.
    """
    encoders = tuple(encoder for encoder in (model.query_encoder, model.key_encoder) if encoder is not None)
    buffers = [buffer for encoder in encoders for buffer in encoder.buffers()]
    kept = [buffer.clone() for buffer in buffers]  # the passes before the capture move BatchNorm's statistics
    # in the order of a step, queries first: the graphs share memory. Without autocast's cache, which would keep casts
    # of the weights as they are now
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
        torch.cuda.make_graphed_callables(encoders, tuple((images.clone(),) for _ in encoders))
    with torch.no_grad():
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
