"""What is asked, whoever sends it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union
from urllib.parse import quote

if TYPE_CHECKING:
    from .types import TaskRequest

#: Bytes, or a file of them.
Source = Union[bytes, Path]

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    json: Mapping[str, Any] | None = None
    content: Source | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Seconds that the answer may take; None: as long as it takes.
    timeout: float | None = None


def address(url: str | None) -> str:
    return (url or os.environ.get("FABER_URL") or DEFAULT_URL).rstrip("/")


def headers(key: str | None) -> dict[str, str]:
    key = key or os.environ.get("FABER_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def tasks(tasks: Sequence[TaskRequest], connect: Sequence[tuple[str, str]] | None) -> dict[str, Any]:
    body: dict[str, Any] = {"tasks": list(tasks)}
    if connect:
        body["connect"] = [list(pair) for pair in connect]
    return body


def execute(body: Mapping[str, Any], prefix: str = "") -> Request:
    return Request("POST", f"{prefix}/execute", json=body)


def stream(body: Mapping[str, Any], prefix: str = "") -> Request:
    return Request("POST", f"{prefix}/execute", json=body, headers={"Accept": "text/event-stream"})


def command(command: str, args: Sequence[str], more: Mapping[str, Any]) -> dict[str, Any]:
    return {"command": command, "args": list(args), **more}


def language(language: str, code: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"language": language, "code": code, **more}


def wait(job: str, seconds: float) -> Request:
    return Request("GET", named("jobs", job), params={"wait": f"{max(1, round(seconds))}s"}, timeout=seconds + 30)


def named(kind: str, name: str) -> str:
    """The path of something by its name, which leads nowhere else."""
    if name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name")
    return f"/{kind}/{quote(name, safe='')}"


def file(session: str, path: str) -> str:
    """The path of a file: a client resolves what would lead out of the session before it asks."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} is no path in a workspace")
    return f"{session}/files/{quote(path)}"
