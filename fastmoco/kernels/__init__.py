"""The contrastive loss and the ring of keys: a reference that says what is meant, and the ways they are computed.

On CUDA by Triton, elsewhere in torch; `implementation` says which. Both are custom operators, so that
torch.compile takes them without a break.
"""

from fastmoco.kernels.dispatch import implementation
from fastmoco.kernels.enqueue import enqueue
from fastmoco.kernels.infonce import infonce

__all__ = ["enqueue", "implementation", "infonce"]
