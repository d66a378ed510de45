"""Buckets of S3 and of stores that speak its protocol."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from shards.storage.network import Network
from shards.storage.remote import RemoteStore

SCHEMES = ("s3://", "s3a://")
_RENEWED = 1.0  # seconds in which credentials that have just been read are not read again


class S3Store(RemoteStore):
    """A prefix of a bucket, through s3fs. Names of objects may have empty parts: `a//b.jpg`."""

    def __init__(self, url: str, network: Network | None = None) -> None:
        super().__init__(url, network)
        self._renewed = 0.0
        self._files.retries = 1  # s3fs's own attempts, which are five

    def _options(self, network: Network) -> dict[str, Any]:
        limits = {"connect_timeout": network.timeout, "read_timeout": network.timeout}
        return {"config_kwargs": {**limits, "retries": {"total_max_attempts": 1}}}

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files, by one listing. Names may be empty: `/` is the folder of the names that begin so."""
        prefix = f"{self._path('')}/{folder}"
        prefix += "/" if folder and not folder.endswith("/") else ""
        return dict(sorted(self._try(folder, lambda: dict(self._entries(prefix))).items()))

    def _entries(self, prefix: str) -> Iterator[tuple[str, int]]:
        # Not by `ls`, which drops slashes at the ends of names.
        bucket, _, prefix = prefix.partition("/")
        token: dict[str, str] = {}
        while True:
            page = self._files.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", **token)
            for found in page.get("CommonPrefixes", ()):
                yield found["Prefix"][len(prefix) : -1], -1
            for found in page.get("Contents", ()):
                if found["Key"] != prefix:  # else a marker object for the folder itself
                    yield found["Key"][len(prefix) :], int(found["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _renew(self) -> None:
        """Read the credentials again: they may have been renewed in `~/.aws`, or by a program that it names."""
        if time.monotonic() - self._renewed > _RENEWED:
            self._renewed = time.monotonic()
            self._files.connect(refresh=True)
