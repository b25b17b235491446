"""What Faber refuses, and what keeps it from answering."""

from __future__ import annotations

import math

import httpx


class FaberError(Exception):
    """Whatever goes wrong."""


class ConnectionFailed(FaberError):
    """Nobody answers."""


class StreamBroken(FaberError):
    """A stream ended without its end: what became of its tasks is not known."""


class ApiError(FaberError):
    """An answer that is no success."""

    def __init__(self, status: int, error: str, details: str, retry_after: float | None = None) -> None:
        super().__init__(f"{error}: {details} (HTTP {status})")
        self.status = status
        self.error = error
        self.details = details
        #: Seconds, where the server says how long to wait.
        self.retry_after = retry_after


class InvalidRequest(ApiError):
    """400, 413, 415, 422: it makes no sense, or is too much."""


class Unauthorized(ApiError):
    """401, 403: no key, or a wrong one."""


class NotFound(ApiError):
    """404: there is no such thing, or it is not yours."""


class Gone(ApiError):
    """410: a session that has ended; the details say why."""


class RateLimited(ApiError):
    """429: too much at once, or of what one may have."""


class Unavailable(ApiError):
    """503: there is no room now."""


_KINDS = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    410: Gone,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    503: Unavailable,
}


def of_status(status: int, error: str, details: str, retry_after: float | None = None) -> ApiError:
    return _KINDS.get(status, ApiError)(status, error, details, retry_after)


def of_response(response: httpx.Response) -> ApiError:
    """The error of an answer whose body was read."""
    try:
        body = response.json()
        error, details = str(body["error"]), str(body["details"])
    except (ValueError, KeyError, TypeError):
        error, details = response.reason_phrase or "Error", response.text[:200]
    try:
        wait = float(response.headers["retry-after"])
        retry_after: float | None = wait if math.isfinite(wait) and wait >= 0 else None
    except (KeyError, ValueError):
        retry_after = None
    return of_status(response.status_code, error, details, retry_after)
