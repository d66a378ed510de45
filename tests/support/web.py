"""A web server on this machine whose answers depend on the path."""

from __future__ import annotations

import gzip
import http.server
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message

from tests.support.serving import LocalServer, serving


class WebServer(LocalServer):
    """Serves `files` by name, `/KIND/NAME`, in a way that the kind tells.

    Kinds: `plain`; `chunked` and `unsized`, without a length; `gzip`, compressed on the way; `notgzip`, which only says
    so; `cut`, whose last 500 bytes are missing; `empty`; `busy`, 429 at the first two requests; `stall`, silent until
    the server ends; `slow`, one byte now and then; a number, that status; `outage`, 503 after `left` answers.

    Attributes:
        requests: Number of requests by path.
        heads: Headers of the last request by path.
        left: Requests that `outage` still answers.
        retry_after: The header Retry-After of `busy` and `outage`.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(_Handler)
        self.files = files
        self.requests: Counter[str] = Counter()
        self.heads: dict[str, Message] = {}
        self.left = 0
        self.retry_after = ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up on an answer are expected."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer  # type: ignore[assignment]

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        server, path = self.server, self.path
        server.requests[path] += 1
        server.heads[path] = self.headers
        _, kind, name = path.split("/", 2)
        data = server.files.get(name)
        status = 200 if data is not None else 404
        if kind.isdigit():
            status = int(kind)
        elif kind == "busy" and server.requests[path] <= 2:
            status = 429
        elif kind == "outage":
            server.left -= 1
            status = 200 if server.left >= 0 else 503
        if kind == "stall":
            server.ending.wait()
            self.close_connection = True
        else:
            self._answer(status, (data or b"") if status == 200 else b"", kind)

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        if status in (429, 503) and self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        if kind == "gzip":
            data = gzip.compress(data)
        if kind in ("gzip", "notgzip"):
            self.send_header("Content-Encoding", "gzip")
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        elif kind == "unsized":
            self.close_connection = True
        else:
            data = b"" if kind == "empty" else data
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if kind == "slow":
            for byte in data:
                self.wfile.write(bytes([byte]))
                if self.server.ending.wait(0.1):
                    break
        self.wfile.write(data[:-500] if kind == "cut" else data)
        self.close_connection = self.close_connection or kind == "cut"


@contextmanager
def web_server(files: Mapping[str, bytes]) -> Iterator[WebServer]:
    """Run a server in a thread."""
    with serving(WebServer(files)) as server:
        yield server
