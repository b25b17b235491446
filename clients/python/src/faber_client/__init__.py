"""A client for Faber: untrusted programs in fresh containers, over HTTP."""

from ._client import AsyncFaber, AsyncSession, Faber, Session
from ._errors import (
    ApiError,
    ConnectionFailed,
    FaberError,
    Gone,
    InvalidRequest,
    NotFound,
    RateLimited,
    StreamBroken,
    Unauthorized,
    Unavailable,
)
from ._events import Event

__all__ = [
    "ApiError",
    "AsyncFaber",
    "AsyncSession",
    "ConnectionFailed",
    "Event",
    "Faber",
    "FaberError",
    "Gone",
    "InvalidRequest",
    "NotFound",
    "RateLimited",
    "Session",
    "StreamBroken",
    "Unauthorized",
    "Unavailable",
]
