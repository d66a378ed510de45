"""Check that all ranks read the same encoder: a run that is still training may write a checkpoint between two reads."""

from __future__ import annotations

from fastmoco.ranks.world import World, from_all
from shards.errors import UserError

_SHOWN = 12  # digits of a digest


class EncodersDiffer(UserError, RuntimeError):
    """Ranks read different weights. The message has what two of them read, and what to do."""

    exit_code = 1


def agree_on_encoder(here: World, place: object, digest: str) -> None:
    """Compare the weights that the ranks read with those that rank 0 did. All ranks call it.

    Args:
        here: this rank.
        place: what the user named; None for an encoder in memory.
        digest: hash of the weights, as of `probes.encoders.digest_of`.

    Raises:
        EncodersDiffer: on all ranks, naming the first rank that differs.
    """
    first, *others = from_all(here, digest)
    for rank, other in enumerate(others, 1):
        if other != first:
            of = "" if place is None else f" of {place}"
            raise EncodersDiffer(
                f"the ranks do not have the same encoder{of}: the hash of its weights is {first[:_SHOWN]} on rank 0, "
                f"{other[:_SHOWN]} on rank {rank}; either a training wrote a checkpoint meanwhile, or nodes hold "
                "different copies. Name a file that is the same for all ranks, as RUN/checkpoints/step-XXXXXXXX.pt"
            )
