"""A web server, read by plain requests: its files may be of unknown size, compressed on the way, or cut off."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO

from shards.storage.faults import CutOff, holds
from shards.storage.network import Network
from shards.storage.remote import ALL, RemoteStore

SCHEMES = ("http://", "https://")
_PIECE = 1 << 20  # bytes
_WHOLE = 10  # time limits that an answer may take in total, so that one byte now and then does not hold a thread


class WebStore(RemoteStore):
    """Files on a web server, through fsspec's session."""

    def __init__(self, url: str) -> None:
        if url.rstrip("/") + "/" in ("http:/", "https:/"):
            raise OSError(errno.EINVAL, "not a valid address: it names no server", url)
        super().__init__(url)

    def _options(self, network: Network) -> dict[str, Any]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=network.timeout, sock_read=network.timeout)
        # `trust_env`: the proxies that the environment names
        return {"client_kwargs": {"timeout": timeout, "headers": network.all_headers(), "trust_env": True}}

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading: by ranges if the server knows them, else from a temporary copy."""
        if self._try(name, lambda: self._head(name))[1]:
            return super().open(name)
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)

        def request() -> None:
            file.seek(0)
            file.truncate()
            self._get(name, 0, ALL, file.write, None)

        self._try(name, request)
        file.seek(0)
        return file  # type: ignore[return-value]

    def sizes(self, folder: str = "") -> dict[str, int]:
        """None: web servers have no listings that a program can rely on."""
        return {}

    def size(self, name: str) -> int:
        """Size of a file in bytes; -1 if the server does not tell."""
        return self._try(name, lambda: self._head(name))[0]

    def _request(self, name: str, start: int, end: int) -> bytes:
        data = bytearray()
        self._get(name, start, end, data.extend, _WHOLE * self.network.timeout)
        return bytes(data)

    def _head(self, name: str) -> tuple[int, bool]:
        """Size of a file, or -1, and whether the server knows ranges."""
        from fsspec.asyn import sync

        async def head() -> tuple[int, bool]:
            session = await self._files.set_session()
            # Not HEAD, which many servers refuse.
            headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
            async with session.get(self._files.encode_url(self._path(name)), headers=headers) as answer:
                of = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
                if answer.status in (206, 416) and of:
                    return int(of[1]), True
                answer.raise_for_status()
                size = -1 if "Content-Encoding" in answer.headers else answer.content_length
                return (-1 if size is None else size), False

        found: tuple[int, bool] = sync(self._files.loop, head)  # type: ignore[assignment]
        return found

    def _get(self, name: str, start: int, end: int, write: Callable[[bytes], object], seconds: float | None) -> None:
        """Pass bytes [start, end) of a file to `write`, piece by piece; all of it may take `seconds`."""
        import aiohttp
        from fsspec.asyn import sync

        async def get() -> None:
            session = await self._files.set_session()
            # Only where the start is not wanted: servers answer a plain request most reliably.
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"} if start else {}
            async with session.get(self._files.encode_url(self._path(name)), headers=headers) as answer:
                if answer.status >= 300:  # not `raise_for_status`, which lets a redirection to nowhere pass
                    raise aiohttp.ClientResponseError(
                        answer.request_info, answer.history, status=answer.status, headers=answer.headers
                    )
                place = start if answer.status == 206 else 0
                received = 0
                try:
                    async for piece in answer.content.iter_chunked(_PIECE):
                        received += len(piece)
                        write(piece[max(0, start - place) : max(0, end - place)])
                        place += len(piece)
                        if place >= end:
                            return
                except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
                    if holds(error, "ContentEncodingError"):
                        raise
                    whole = answer.headers.get("Content-Length")
                    of = f" of {int(whole):,}" if whole and "Content-Encoding" not in answer.headers else ""
                    fault = CutOff(errno.EIO, f"cut off: {received:,}{of} bytes")
                    fault.received = received
                    raise fault from error

        sync(self._files.loop, get, timeout=seconds)
