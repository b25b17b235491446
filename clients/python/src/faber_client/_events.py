"""Streams of events (server-sent events, HTML Living Standard section 9.2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._errors import of_status

if TYPE_CHECKING:
    from .types import TaskResult


@dataclass(frozen=True)
class Event:
    """Something that happened: `queued`, `started`, `stdout`, `stderr`, `usage`, `dropped`, `result`, `done`."""

    name: str
    data: dict[str, Any]

    @property
    def task(self) -> int:
        """The task's place in the request."""
        return int(self.data["task"])

    @property
    def bytes(self) -> bytes:
        """What was written, of `stdout` and `stderr`."""
        if "base64" in self.data:
            return base64.b64decode(self.data["base64"])
        return str(self.data["text"]).encode()

    @property
    def result(self) -> TaskResult:
        """The task's result, of `result`."""
        result: TaskResult = self.data["result"]
        return result


class Parser:
    """Makes events of a stream's bytes; lines end in a line feed alone, whatever else a program writes."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = ""
        self._data: list[str] = []
        #: Whether the stream has come to its end.
        self.is_over = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Takes more of the stream, and gives the events that are whole."""
        self._rest += chunk
        while (end := self._rest.find(b"\n")) >= 0:
            line = self._rest[:end].decode()
            del self._rest[: end + 1]
            event = self._line(line)
            if event is not None:
                yield event

    def _line(self, line: str) -> Event | None:
        """Takes a line without its end; an event once one is whole."""
        if line.startswith("event:"):
            self._name = line[6:].strip()
        elif line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        elif not line and self._data:
            event = Event(self._name, json.loads("\n".join(self._data)))
            self._name, self._data = "", []
            if event.name == "error":
                self.is_over = True
                raise of_status(500, str(event.data.get("error")), str(event.data.get("details")))
            self.is_over = event.name == "done"
            return event
        return None
