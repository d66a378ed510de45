"""A web server, read by plain requests: its files may be of unknown size, compressed on the way, or cut off."""

from __future__ import annotations

import errno
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from shards.storage.base import ALL
from shards.storage.faults import CutOff, holds, translated
from shards.storage.network import Network
from shards.storage.remote import RemoteStore
from shards.storage.retry import Host, retried

_PIECE = 1 << 20  # bytes
_WHOLE = 10  # time limits that an answer may take in total, so that one byte now and then does not hold a thread


class WebStore(RemoteStore):
    """Files on a web server, through fsspec's session."""

    def __init__(self, url: str, network: Network | None = None) -> None:
        if url.rstrip("/") + "/" in ("http:/", "https:/"):
            raise OSError(errno.EINVAL, "not a valid address: it names no server", url)
        super().__init__(url, network)

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

    def stream(self, name: str, delays: Sequence[float] | None = None) -> WebStream:
        """Open a file for reading it once, from its start; `delays` as of `WebStream`."""
        return WebStream(self, name, self._delays if delays is None else delays, self._host)

    def address(self, name: str) -> Any:
        """The URL of a file, for `session`."""
        return self._files.encode_url(self._path(name))

    @property
    def loop(self) -> Any:
        """The event loop of `session`."""
        return self._files.loop

    async def session(self) -> Any:
        """The aiohttp.ClientSession, in `loop`."""
        return await self._files.set_session()

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


class WebStream(io.RawIOBase):
    """Reads a file of a web server from its start to its end by one request; `read` raises as `RemoteStore` does.

    After a fault it asks for the rest by a range. A server that answers with the whole file, or compresses it on the
    way, has to send what was read again, which is skipped.

    Args:
        store: The web server.
        name: The file's name.
        delays: Seconds before each retry; they count from the first again after each part that arrives.
        host: The server.
    """

    def __init__(self, store: WebStore, name: str, delays: Sequence[float], host: Host) -> None:
        self._store, self._where, self._delays, self._host = store, f"{store.url}/{name}", delays, host
        self._address = store.address(name)
        self._place = 0  # bytes that were read
        self._answer: Any = None
        self._size: int | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes; 0 at the end."""
        from fsspec.asyn import sync

        def request() -> bytes:
            try:
                return sync(self._store.loop, self._next, min(len(buffer), _PIECE))  # type: ignore[return-value]
            except Exception as error:  # aiohttp has types of its own
                raise translated(error, self._where, self._store.network.timeout) from error

        data = retried(request, self._where, self._delays, self._host)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        if self._answer is not None and not self.closed:
            self._store.loop.call_soon_threadsafe(self._answer.close)
        super().close()

    async def _next(self, size: int) -> bytes:
        if self._place == self._size:
            return b""
        try:
            answer = self._answer or await self._ask()
            data: bytes = await answer.content.read(size)
            if not data and self._size is not None:
                raise CutOff(errno.EIO, f"cut off: {self._place:,} of {self._size:,} bytes", self._where)
            return data
        except BaseException:
            if self._answer is not None:
                self._answer.close()
            self._answer = None
            raise

    async def _ask(self) -> Any:
        """The answer to a request, after what was read before."""
        session = await self._store.session()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={self._place}-"} if self._place else {})
        self._answer = answer = await session.get(self._address, headers=headers)
        answer.raise_for_status()
        start = self._place if answer.status == 206 else 0
        if "Content-Encoding" not in answer.headers and answer.content_length is not None:
            size = start + answer.content_length
            if self._size not in (None, size):
                raise OSError(errno.ESTALE, f"changed from {self._size:,} to {size:,} bytes", self._where)
            self._size = size
        skipped = start
        while skipped < self._place:
            data = await answer.content.read(min(_PIECE, self._place - skipped))
            if not data:
                raise CutOff(errno.EIO, f"cut off: {skipped:,} bytes", self._where)
            skipped += len(data)
        return answer
