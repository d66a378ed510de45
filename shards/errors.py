"""Errors whose message is for the user: it names the value, the place and the remedy."""

from __future__ import annotations

from typing import ClassVar

from shards.words import display


class UserError(Exception):
    """Base of all errors that the user can mend; `shards.command` prints the message as one line.

    Attributes:
        exit_code: Exit code of the command.
        one_rank: Whether a single rank may raise it, and so has to report it. Other errors are raised by all ranks, and
            rank 0 reports them.
        consequence: Whether it follows from an error of another process, which is the one to mend.
        stopped_by: Number of the signal that asked for this end; 0 for an error.
    """

    exit_code: ClassVar[int] = 2
    one_rank: ClassVar[bool] = False
    consequence: ClassVar[bool] = False
    stopped_by: int = 0


class PrintableError(UserError, ValueError):
    """An error whose message holds names from a file, which may hold anything if the file is damaged."""

    def __str__(self) -> str:
        return display(super().__str__().encode("utf-8", "backslashreplace"))


class PathError(UserError, ValueError):
    """A file or folder that the user named cannot be written, or read."""


class PackError(UserError, RuntimeError):
    """A packing cannot start or continue."""


class ShardSetError(UserError, ValueError):
    """A folder or URL is not a complete shard set; the message says what is missing and which command creates it."""


class ShardIndexError(ShardSetError):
    """The index of a shard is missing or damaged; the message names the file and the command that rebuilds it."""

    one_rank = True  # ranks read different shards


class StoreError(ShardSetError):
    """A file of a set or stream cannot be read, and no image is at fault; the message names file, cause and remedy."""

    one_rank = True  # ranks read different files


class StreamError(ShardSetError):
    """Tars cannot be streamed; the message names the tar."""


class TarReadError(StreamError):
    """A tar that is being streamed cannot be read; the message names it, the cause and the remedy."""

    one_rank = True  # ranks read different tars


class SampleError(UserError, RuntimeError):
    """One sample cannot be read.

    Attributes:
        sample_id: Id of the sample in its set.
        shard: File name of its tar, `shard-000012.tar`.
        key: Key of the sample in the tar, 12 digits.
        cause: Why it cannot be read.
    """

    one_rank = True

    def __init__(self, sample_id: int, shard: str, key: str, cause: str) -> None:
        # All arguments, not the text: a worker process pickles an exception as its class and `args`.
        super().__init__(sample_id, shard, key, cause)
        self.sample_id = sample_id
        self.shard = shard
        self.key = key
        self.cause = cause

    def __str__(self) -> str:
        return f"sample {self.sample_id} ({self.shard}, key {self.key}): {self.cause}"
