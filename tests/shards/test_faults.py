"""Faults of remote stores: which are a file's own, how long a store is asked again, and what is said."""

from __future__ import annotations

import socket
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from shards.storage import retry
from shards.storage.faults import CutOff, MissingBucket, Unavailable, translated
from shards.storage.retry import Host, pauses, retried

URL = "s3://bucket/a.jpg"


class Answer(Exception):
    """An exception of a client library, with its status and headers."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


def s3(code: str, status: int) -> Exception:
    error = Exception("ClientError")
    error.response = {  # type: ignore[attr-defined]
        "Error": {"Code": code, "Message": "Why."},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "7"}},
    }
    return error


def test_a_machine_without_credentials_is_told_how_to_give_them():
    exceptions = pytest.importorskip("botocore.exceptions")
    found = translated(exceptions.NoCredentialsError(), URL)
    assert isinstance(found, Unavailable) and found.credentials and found.most == 0
    assert found.strerror.startswith("there are no credentials; run aws configure, or set AWS_ACCESS_KEY_ID and")


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425, 429, 520])
def test_these_answers_of_a_web_server_are_faults_of_the_way(status):
    found = translated(Answer(status, retry_after="12"), URL)
    assert isinstance(found, Unavailable) and found.retry_after == 12
    assert f"HTTP {status}" in found.strerror and found.filename == URL


@pytest.mark.parametrize(
    "status, kind, text",
    [
        (404, FileNotFoundError, "HTTP 404 Not Found"),
        (410, FileNotFoundError, "HTTP 410 Gone"),
        (403, PermissionError, "HTTP 403 Forbidden"),
        (401, PermissionError, "HTTP 401 Unauthorized"),
        (451, OSError, "HTTP 451 Unavailable For Legal Reasons"),
        (400, OSError, "HTTP 400 Bad Request"),
    ],
)
def test_these_are_the_files_own(status, kind, text):
    found = translated(Answer(status), URL)
    assert isinstance(found, kind) and not isinstance(found, Unavailable)
    assert found.strerror == text


@pytest.mark.parametrize(
    "code, status",
    [
        ("SlowDown", 503),
        ("RequestLimitExceeded", 400),
        ("Throttling", 400),
        ("InternalError", 500),
        ("RequestTimeout", 400),
        ("ExpiredToken", 400),
        ("InvalidAccessKeyId", 403),
        ("SignatureDoesNotMatch", 403),
        ("RequestTimeTooSkewed", 403),
        ("400", 400),  # HEAD with an expired token: it has no body that names the code
    ],
)
def test_these_codes_of_s3_are_faults_of_the_way(code, status):
    found = translated(s3(code, status), URL)
    assert isinstance(found, Unavailable)
    assert code in found.strerror and f"HTTP {status}" in found.strerror


def test_codes_of_s3_that_concern_one_object_or_the_bucket():
    assert isinstance(translated(s3("NoSuchKey", 404), URL), FileNotFoundError)
    assert isinstance(translated(s3("AccessDenied", 403), URL), PermissionError)
    assert isinstance(translated(s3("NoSuchBucket", 404), URL), MissingBucket)
    assert isinstance(translated(s3("PreconditionFailed", 412), URL), FileExistsError)


def test_a_date_in_retry_after_and_nonsense():
    found = translated(Answer(503, Retry_After=formatdate(time.time() + 60, usegmt=True)), URL)
    assert isinstance(found, Unavailable) and 50 < (found.retry_after or 0) <= 60
    found = translated(Answer(503, Retry_After="soon"), URL)
    assert isinstance(found, Unavailable) and found.retry_after is None


def test_a_name_that_cannot_be_resolved_is_named():
    error = OSError("Cannot connect to host")
    error.os_error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")  # type: ignore[attr-defined]
    found = translated(error, URL)
    assert isinstance(found, Unavailable) and found.most == 2
    assert found.strerror == "the name of the server cannot be resolved: Name or service not known"


def test_a_full_disk_is_no_fault_of_the_store():
    found = translated(OSError(28, "No space left on device", "/tmp/x"), URL)
    assert type(found) is OSError and (found.errno, found.filename) == (28, "/tmp/x")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only while the code waits; the waits."""
    waits: list[float] = []

    def wait(self: Host, seconds: float = 0.0, given_up: int | None = None) -> bool:
        until = max(seconds, self._held_until - sum(waits))
        if until > 0:
            waits.append(until)
        return not self._down

    monkeypatch.setattr(Host, "sleep", wait)
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: sum(waits)))
    return waits


def failing(times: int, fault: OSError | None = None):
    """A request that fails some times, and then returns how often it came; it costs no time."""
    came: list[int] = []

    def request() -> int:
        came.append(1)
        if len(came) <= times:
            raise fault or Unavailable(5, "HTTP 503 Service Unavailable", URL)
        return len(came)

    return request


def test_pauses_grow_and_end(clock):
    assert retried(failing(6), URL) == 7
    assert clock == [1, 2, 4, 8, 16, 30] == list(pauses(6))
    with pytest.raises(Unavailable, match="HTTP 503 Service Unavailable"):
        retried(failing(7), URL)


def test_a_server_that_names_a_time_is_obeyed_within_a_limit(clock):
    fault = Unavailable(5, "HTTP 429 Too Many Requests", URL)
    fault.retry_after = 20.0
    assert retried(failing(1, fault), URL) == 2
    assert clock == [20]
    clock.clear()
    fault.retry_after = 86400.0
    with pytest.raises(Unavailable):
        retried(failing(9, fault), URL)
    assert clock == [120]


def test_a_stalled_server_costs_two_time_limits(clock):
    def stalls() -> None:
        clock.append(60.0)
        raise Unavailable(5, "no data for 60 s", URL)

    with pytest.raises(Unavailable, match="no data for 60 s"):
        retried(stalls, URL)
    assert clock == [60, 1, 60, 2, 60]


def test_once_a_server_is_down_each_request_comes_once_until_it_answers(clock):
    host = Host()
    with pytest.raises(Unavailable):
        retried(failing(99), URL, pauses(3), host)
    assert clock == [1, 2, 4]
    with pytest.raises(Unavailable):
        retried(failing(1), URL, pauses(3), host)
    with pytest.raises(FileNotFoundError):
        retried(failing(1, FileNotFoundError(2, "HTTP 404 Not Found", URL)), URL, pauses(3), host)
    assert retried(failing(3), URL, pauses(3), host) == 4


def test_one_url_that_always_fails_does_not_make_the_server_down(clock):
    host = Host()

    def fails_while_others_are_answered() -> None:
        host.answered()
        raise Unavailable(5, "HTTP 500 Internal Server Error", URL)

    with pytest.raises(Unavailable):
        retried(fails_while_others_are_answered, URL, pauses(3), host)
    assert retried(failing(3), URL, pauses(3), host) == 4


def test_a_body_that_is_cut_at_the_same_byte_is_the_files_own_fault(clock):
    def cut(*places: int):
        left = list(places)

        def request() -> None:
            fault = CutOff(5, "cut off: 812 of 1,312 bytes", URL)
            fault.received = left.pop(0)
            raise fault

        return request

    host = Host()
    host.answered()
    with pytest.raises(OSError, match="cut off: 812 of 1,312") as found:
        retried(cut(*[812] * 9), URL, pauses(6), host)
    assert not isinstance(found.value, Unavailable) and clock == [1, 2]
    for places, other in (([812, 400] * 9, host), ([0] * 9, host), ([812] * 9, Host())):
        with pytest.raises(CutOff):
            retried(cut(*places), URL, pauses(6), other)
