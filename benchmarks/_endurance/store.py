"""A web server with a shard set, which can be away for a while."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.words import counted


class SetServer(http.server.ThreadingHTTPServer):
    """Serves the files of a folder at a free port, whole or by ranges.

    Args:
        folder: the files.

    Attributes:
        away: every request is dropped without an answer.
        every: every so many requests are answered with 503; 0 for none.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.away, self.every = False, 0
        self.requests = self.refused = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that are killed leave their connections."""

    def __str__(self) -> str:
        return f"{counted(self.requests, 'request')}, {self.refused:,} refused"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SetServer  # type: ignore[assignment]

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        if server.away:
            server.refused += 1
            self.close_connection = True
            return
        if server.every and server.requests % server.every == 0:
            server.refused += 1
            self._answer(503, b"")
            return
        data = server.files.get(self.path)
        if data is None:
            self._answer(404, b"")
            return
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            self._answer(200, data)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._answer(206, part, ("Content-Range", place))

    do_HEAD = do_GET

    def _answer(self, status: int, data: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), ("Accept-Ranges", "bytes"), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def serving(folder: Path) -> Iterator[SetServer]:
    """Serve a folder from a thread."""
    server = SetServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
