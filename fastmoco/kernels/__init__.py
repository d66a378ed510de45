"""The contrastive loss and the queue's ring buffer: a plain reference, and the implementations used in training.

Triton on CUDA, torch elsewhere; `implementation` says which. Under torch.compile both are custom operators, so that it
does not break its graph at them.
"""

from fastmoco.kernels.dispatch import implementation
from fastmoco.kernels.enqueue_operator import enqueue
from fastmoco.kernels.infonce_operator import infonce

__all__ = ["enqueue", "implementation", "infonce"]
