"""Check that all ranks opened the same images: one may open a set before images are appended to it, another after."""

from __future__ import annotations

from typing import NamedTuple

from fastmoco.ranks.world import World, from_all
from fastmoco.scalings import in_words, plain
from shards import ShardSet
from shards.errors import UserError
from shards.format.scaling import Scaling
from shards.words import counted

_SHOWN = 12  # digits of a digest


class Opened(NamedTuple):
    """What a rank opened: where, the number of images, the digest of the set (hex), and how its 16 bits are scaled."""

    place: str
    images: int
    digest: str
    scaling: Scaling | None = None

    @classmethod
    def of(cls, shard_set: ShardSet) -> Opened:
        """What stands for a set."""
        return cls(str(shard_set.path), len(shard_set), shard_set.digest, shard_set.scaling)

    def __str__(self) -> str:
        scaled = "" if self.scaling is None else f", {in_words([plain(self.scaling)])}"
        return f"{self.place} with {counted(self.images, 'image')} (digest {self.digest[:_SHOWN]}{scaled})"


class ImagesDiffer(UserError, RuntimeError):
    """Ranks opened different images. The message has what two of them opened, and what to do."""

    exit_code = 1


def agree_on_images(here: World, *sets: Opened) -> None:
    """Compare what the ranks opened with what rank 0 did. All ranks call it, with the same number of sets.

    Their orders and their shares would differ otherwise, and nothing later would tell.

    Args:
        here: this rank.
        sets: what it opened; the place may differ between ranks.

    Raises:
        ImagesDiffer: on all ranks, naming the first set and rank that differ.
    """
    by_rank = from_all(here, sets)
    for rank, others in enumerate(by_rank):
        for first, other in zip(by_rank[0], others, strict=True):
            if first[1:] != other[1:]:
                raise ImagesDiffer(
                    f"the ranks do not have the same images: rank 0 opened {first}, rank {rank} {other}; either images "
                    "were being appended, or nodes hold different copies. Once the set is the same for all ranks, run "
                    "the same command again"
                )
