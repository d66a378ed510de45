"""What can go wrong with a shard set, as exceptions that name the value, the place and the remedy."""

from __future__ import annotations


class PackError(RuntimeError):
    """A packing that cannot start or go on; the message is one line for the user."""


class ShardSetError(ValueError):
    """A folder that is not a (whole) shard set; the message says what was looked for and what to run."""


class StreamError(ShardSetError):
    """Tars that cannot be streamed; the message names the tar and what to do."""


class SampleError(RuntimeError):
    """One sample that cannot be read.

    Attributes:
        sample_id: Id of the sample in its set.
        shard: File name of its tar, `shard-000012.tar`.
        key: Key of the sample in the tar, 12 digits.
        cause: What is wrong, in words.
    """

    def __init__(self, sample_id: int, shard: str, key: str, cause: str) -> None:
        super().__init__(sample_id, shard, key, cause)
        self.sample_id = sample_id
        self.shard = shard
        self.key = key
        self.cause = cause

    def __str__(self) -> str:
        return f"sample {self.sample_id} ({self.shard}, key {self.key}): {self.cause}"
