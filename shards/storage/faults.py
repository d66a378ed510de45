"""Faults of remote stores: which are a file's own, and which are those of the way to it.

A fault of the way (of the server, the network or the credentials) says nothing about the file: later, or with valid
credentials, it may be read. It becomes `Unavailable`. Any other OSError of a remote store is the file's own: asking
again gives the same answer.
"""

from __future__ import annotations

import errno
import http
import os
import socket
import time
from collections.abc import Iterator

from shards.storage.network import WAIT

# Also the codes by which S3 answers HEAD, which has no body to hold a name.
_S3_MISSING = frozenset(("NoSuchKey", "NoSuchVersion", "404"))
_S3_REFUSED = frozenset(("AccessDenied", "AllAccessDisabled", "InvalidObjectState", "403"))
_S3_TOKENS = frozenset(("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"))
_S3_CREDENTIALS = frozenset(
    [
        "AccountProblem",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "NotSignedUp",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "RequestExpired",
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
    ]
)
# With an HTTP status of 4xx, which otherwise is an object's own.
_S3_BUSY = frozenset(
    [
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "TooManyRequests",
        "SlowDown",
        "RequestTimeout",
        "RequestThrottled",
        "OperationAborted",
        "IncompleteBody",
    ]
)
_PASSING = frozenset((407, 408, 425, 429))  # statuses of 4xx: the proxy's log-in, time-out, too early, too many
_FINAL = frozenset(("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ConfigParseError"))
# Errors of this machine, which reach us through a client library while it reads or writes a local file.
_LOCAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Unavailable(OSError):
    """A fault of the way to a file: the server, the network or the credentials.

    Attributes:
        retry_after: Seconds after which the server wants to be asked again; None if it named no time.
        most: The most retries that are of use; None: any number.
        credentials: Whether the credentials have expired or are refused.
        waited: Seconds for which the request was repeated.
    """

    retry_after: float | None = None
    most: int | None = None
    credentials: bool = False
    waited: float = 0.0

    def after_waiting(self) -> str:
        """The cause and how long a command waited, for the error that ends it."""
        return f"{self.strerror}, for {self.waited:.0f} s ({WAIT} sets how long to wait)"


class CutOff(Unavailable):
    """A body that ended before its end.

    Attributes:
        received: Bytes that arrived.
    """

    received: int = -1


class MissingBucket(FileNotFoundError):
    """The bucket does not exist: a fault of the source, not of one of its files."""


def translated(error: Exception, where: str, seconds: float | None = None) -> OSError:
    """What a client library raised, as an OSError with `strerror` and `filename`.

    Args:
        error: From fsspec, aiohttp, s3fs or botocore.
        where: URL of the file.
        seconds: The time limit that was in force, for the message.

    Returns:
        FileNotFoundError, FileExistsError, PermissionError or another OSError if the fault is the file's own; else
        Unavailable or MissingBucket.
    """
    chain = list(_chain(error))
    if isinstance(error, Unavailable):
        error.filename = where
        return error
    for link in chain:
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return _of_s3(response, where)
    for link in chain:
        status = getattr(link, "status", None)
        if isinstance(status, int) and status >= 300:
            return _of_status(status, getattr(link, "headers", None) or {}, where)
    return _of_exception(error, chain, where, seconds)


def in_set(fault: OSError, given: bool) -> OSError:
    """A fault of a file that a set's manifest names: what is the file's own elsewhere is one of the way here.

    A refusal passes when a token is renewed, and a body that is cut off is not the whole file. A file that is missing
    stays missing.

    Args:
        fault: From `translated`.
        given: Whether the store has given a file of the set already.
    """
    refused = isinstance(fault, PermissionError)
    if not (refused or isinstance(fault, CutOff) or fault.errno == errno.ERANGE):
        return fault
    found = Unavailable(fault.errno, fault.strerror, fault.filename)
    found.credentials = refused
    # A store that has given nothing yet is likely not open to this user at all, who should not wait to be told so.
    found.most = 2 if refused and not given else None
    return found


def holds(error: BaseException, kind: str) -> bool:
    """Whether an error, or one of its causes, is of a type of that name; the type's package need not be installed."""
    return any(kind == base.__name__ for link in _chain(error) for base in type(link).__mro__)


def status_text(status: int) -> str:
    """`HTTP 503 Service Unavailable`."""
    try:
        return f"HTTP {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes; aiohttp keeps the system's error as an attribute."""
    while error is not None:
        yield error
        error = error.__cause__ or getattr(error, "os_error", None)


def _of_s3(response: dict[str, dict[str, object]], where: str) -> OSError:
    found = response.get("Error", {})
    code, message = str(found.get("Code", "")), str(found.get("Message", "")).rstrip(".")
    metadata = response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode") or (int(code) if code.isdigit() else 0)
    status = status if isinstance(status, int) else 0
    text = status_text(status) if code.isdigit() or not code else f"{status_text(status)}, {code}"
    text += f": {message}" if message and message not in text else ""
    if code == "NoSuchBucket":
        return MissingBucket(errno.ENOENT, "the bucket does not exist", where)
    if code in _S3_MISSING:
        return FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)} ({text})", where)
    if code == "InvalidRange" or status == 416:
        return OSError(errno.ERANGE, text, where)
    if code == "PreconditionFailed" or status == 412:
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), where)
    if code in _S3_TOKENS or code in _S3_CREDENTIALS:
        fault = Unavailable(errno.EACCES, f"{text}; renew the credentials", where)
        fault.credentials, fault.most = True, (None if code in _S3_TOKENS else 0)  # tokens are replaced while we wait
        return fault
    if code in _S3_REFUSED:
        return PermissionError(errno.EACCES, text, where)
    # HEAD has no body that names the code: 400 is how S3 answers it with an expired token.
    if code in _S3_BUSY or code == "400" or not 400 <= status < 500:
        headers = metadata.get("HTTPHeaders")
        fault = Unavailable(errno.EIO, text, where)
        fault.retry_after = _retry_after(headers if isinstance(headers, dict) else {})
        return fault
    return _of_status(status, {}, where, text)


def _of_status(status: int, headers: object, where: str, text: str = "") -> OSError:
    text = text or status_text(status)
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, text, where)
    if status == 416:
        return OSError(errno.ERANGE, text, where)
    if status in (401, 403):
        return PermissionError(errno.EACCES, text, where)
    if status < 500 and status not in _PASSING:
        return OSError(errno.EINVAL, text, where)
    fault = Unavailable(errno.EIO, text, where)
    fault.retry_after = _retry_after(headers)
    return fault


def _of_exception(error: Exception, chain: list[BaseException], where: str, seconds: float | None) -> OSError:
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), where)
    if isinstance(error, FileNotFoundError):  # fsspec's text is only the path
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return type(error)(error.errno or errno.EACCES, error.strerror or str(error), where)
    if isinstance(error, OSError) and error.errno in _LOCAL:
        return OSError(error.errno, error.strerror, error.filename or where)
    web = isinstance(error, ValueError) and where.startswith("http")  # from the parser of addresses
    if web or kinds & {"InvalidURL", "NonHttpUrlClientError", "ParamValidationError"}:
        return OSError(errno.EINVAL, f"not a valid address: {error}", where)
    if "ContentEncodingError" in kinds:
        return OSError(errno.EINVAL, "the body is not compressed as its Content-Encoding says", where)
    fault = Unavailable(errno.EIO, _way(error, chain, kinds, seconds), where)
    if kinds & _FINAL:
        fault.credentials, fault.most = True, 0
    elif any(isinstance(link, socket.gaierror) and link.errno == socket.EAI_NONAME for link in chain):
        fault.most = 2  # the resolver's definite answer: that there is no such name
    return fault


def _way(error: Exception, chain: list[BaseException], kinds: set[str], seconds: float | None) -> str:
    """Words for a fault of the way that has no status."""
    limit = f"{seconds:g} s" if seconds else "the time limit"
    if "NoCredentialsError" in kinds:
        return "there are no credentials; run aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    name = next((link for link in chain if isinstance(link, socket.gaierror)), None)
    if name is not None:
        return f"the name of the server cannot be resolved: {name.strerror}"
    if kinds & {"ConnectionTimeoutError", "ConnectTimeoutError", "ConnectTimeout"}:
        return f"no connection within {limit}"
    if kinds & {"SocketTimeoutError", "ReadTimeoutError", "ReadTimeout"}:
        return f"no data for {limit}"
    # by name: in Python 3.10 asyncio's TimeoutError is a type of its own
    if "FSTimeoutError" in kinds or any(kind.__name__ == "TimeoutError" for kind in type(error).__mro__):
        return "the transfer took too long"
    if kinds & {"ServerDisconnectedError", "ConnectionClosedError", "ConnectionResetError", "RemoteDisconnected"}:
        return "the server closed the connection"
    system = next((link for link in reversed(chain) if isinstance(link, OSError) and link.strerror), None)
    if isinstance(system, ConnectionError) and system.errno:  # asyncio's text repeats the address
        return os.strerror(system.errno)
    return str(system.strerror) if system is not None else f"{type(error).__name__}: {error}".rstrip(": ")


def _retry_after(headers: object) -> float | None:
    """Seconds in a Retry-After header, which holds a number or a date."""
    items = getattr(headers, "items", dict)()
    text = next((str(value) for name, value in items if str(name).lower() == "retry-after"), "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    import email.utils  # here, as it takes a tenth of the time that a command takes to start

    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()) if text else None
    except (ValueError, TypeError, OverflowError):
        return None
