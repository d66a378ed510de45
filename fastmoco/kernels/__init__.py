"""The contrastive loss: a reference that says what is meant, and the way it is computed."""

from fastmoco.kernels.infonce import infonce

__all__ = ["infonce"]
