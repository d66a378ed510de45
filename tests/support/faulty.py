"""HTTP servers on this machine that fail as real ones do: a web server, and a proxy in front of an S3 server."""

from __future__ import annotations

import http.client
import http.server
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from tests.support.serving import LocalServer

KINDS = ("error", "busy", "cut", "stall", "drop")
"""500 to 504; 429 or S3's SlowDown; a body cut off; a body that stops without an end; no answer at all.

`plan` also knows `silence`, an answer that never begins, and `no bucket`.
"""

_OF_BODIES = ("cut", "stall")
_STATUS = {500: "InternalError", 502: "BadGateway", 503: "ServiceUnavailable", 504: "GatewayTimeout"}
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


class Faults:
    """What goes wrong with a server's answers.

    Which requests fail follows from the seed, the request, and how often it came; neither threads nor time change it.

    Args:
        seed: Of the choice.
        rate: Part of the requests that fail.
        kinds: Of `KINDS`.
        in_row: How often a request fails in a row, at most.
        stall: Seconds until a stalled answer ends in a closed connection.

    Attributes:
        counts: Injected faults by kind.
        requests: Number of requests.
    """

    def __init__(
        self, seed: int = 0, rate: float = 0.0, kinds: Iterable[str] = KINDS, in_row: int = 2, stall: float = 20.0
    ) -> None:
        self.seed, self.rate, self.kinds, self.in_row, self.stall = seed, rate, tuple(kinds), in_row, stall
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self._came: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._planned: list[str] = []
        self._begin, self._seconds, self._end = -1, 0.0, 0.0
        self._expired: dict[str, int] = {}
        self._lock = threading.Lock()

    def plan(self, *kinds: str) -> None:
        """Let the next requests fail like this, whatever the rate; faults of bodies wait for the next GET."""
        with self._lock:
            self._planned += kinds

    def outage(self, seconds: float, after: int = 0) -> None:
        """Drop every request for some seconds, beginning when `after` more requests have come."""
        with self._lock:
            self._begin, self._seconds, self._end = self.requests + after, seconds, 0.0

    def expire(self, key: str, after: int = 0) -> None:
        """Refuse this access key when `after` more requests have come, as S3 refuses a token that has expired."""
        with self._lock:
            self._expired[key] = self.requests + after

    def next(self, request: str, authorization: str = "") -> str | None:
        """The fault of a request, or None."""
        with self._lock:
            kind = self._next(request, authorization)
            self.requests += 1
            if kind:
                self.counts[kind] += 1
            return kind

    def _next(self, request: str, authorization: str) -> str | None:
        if 0 <= self._begin <= self.requests:
            self._end = self._end or time.monotonic() + self._seconds
            if time.monotonic() < self._end:
                return "outage"
            self._begin = -1
        if any(f"Credential={k}/" in authorization and self.requests >= at for k, at in self._expired.items()):
            return "expired"
        if self._planned and (request.startswith("GET ") or self._planned[0] not in _OF_BODIES):
            return self._planned.pop(0)
        # without the name of a test's own folder in the bucket, which is random
        request = re.sub("/[0-9a-f]{32}(?=/|$)", "", request)
        chance = random.Random(f"{self.seed} {request} {self._came[request]}")
        self._came[request] += 1
        if chance.random() >= self.rate or self._failed[request] >= self.in_row:
            self._failed[request] = 0
            return None
        self._failed[request] += 1
        # only answers to GET have a body
        return chance.choice([kind for kind in self.kinds if request.startswith("GET ") or kind not in _OF_BODIES])


Answer = tuple[int, list[tuple[str, str]], bytes]


class FaultyServer(LocalServer):
    """Serves files, or forwards to another server, with faults.

    Args:
        faults: What goes wrong.
        files: Content by path, `/a/b.jpg`; may be changed while the server runs.
        upstream: Address of the server to forward to, instead of files.
        ranges: Whether requests for parts of a file are obeyed.
    """

    def __init__(
        self, faults: Faults, files: Mapping[str, bytes] | None = None, upstream: str = "", ranges: bool = True
    ) -> None:
        super().__init__(_Handler)
        self.faults, self.files, self.upstream, self.ranges = faults, files or {}, upstream, ranges

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up on an answer are expected."""

    def answer(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> Answer:
        """The answer without a fault."""
        return self._forwarded(handler, body) if self.upstream else self._file(handler)

    def _forwarded(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=60)
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP}
        connection.request(handler.command, handler.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        # the answer to HEAD has the length of a body that it does not have
        length = answer.getheader("Content-Length") if handler.command == "HEAD" else None
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        return answer.status, [*kept, ("Content-Length", length or str(len(data)))], data

    def _file(self, handler: http.server.BaseHTTPRequestHandler) -> Answer:
        data = self.files.get(urlsplit(handler.path).path)
        if data is None:
            return 404, [("Content-Length", "0")], b""
        headers = [("ETag", f'"{hash(data)}"')] + ([("Accept-Ranges", "bytes")] if self.ranges else [])
        whole, status, wanted = len(data), 200, handler.headers.get("Range", "")
        if self.ranges and wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last) + 1 if last else None], 206
            headers.append(("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{whole}"))
        return status, [*headers, ("Content-Length", str(len(data)))], data


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer  # type: ignore[assignment]

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        faults, body = self.server.faults, self._body()
        request = f"{self.command} {self.path} {self.headers.get('Range', '')}"
        fault = faults.next(request, self.headers.get("Authorization", ""))
        if fault in ("drop", "outage", "silence"):
            self.close_connection = True
            if fault == "silence":
                self.server.ending.wait(faults.stall)
        elif fault == "error":
            status = random.Random(f"{request} {faults.counts[fault]}").choice(list(_STATUS))
            self._refuse(status, _STATUS[status])
        elif fault == "busy":
            self._refuse(*((503, "SlowDown") if self.server.upstream else (429, "TooManyRequests")))
        elif fault == "expired":
            self._refuse(400, "ExpiredToken")
        elif fault == "no bucket":
            self._refuse(404, "NoSuchBucket")
        else:
            self._send(*self.server.answer(self, body), fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        retry = [("Retry-After", "0")] if code == "TooManyRequests" else []
        head = [*retry, ("Content-Type", "application/xml"), ("Content-Length", str(len(text)))]
        self._send(status, head, text.encode())

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str | None = None) -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if fault else data)
        self.wfile.flush()
        if fault == "stall":
            self.server.ending.wait(self.server.faults.stall)
        self.close_connection = self.close_connection or fault is not None
