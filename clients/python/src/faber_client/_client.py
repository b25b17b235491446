"""Faber's API, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import httpx

from . import _requests as requests
from ._errors import ApiError, ConnectionFailed, StreamBroken, of_response
from ._events import Event, Parser
from ._requests import Request, Source

if TYPE_CHECKING:
    from .types import (
        BlobInfo,
        Entry,
        Health,
        ImageInfo,
        Job,
        JobAccepted,
        JobList,
        JudgeRequest,
        JudgeResponse,
        Language,
        SessionInfo,
        Snapshot,
        TaskRequest,
        TaskResult,
    )

#: Whoever is asked to wait longer before it tries again is told so instead; seconds.
_LONGEST_PAUSE = 60.0
#: Of a job's end, so long is waited in one request.
_WAIT = 30.0


def _may_try_again(error: ApiError) -> bool:
    # Neither was run.
    return error.status in (429, 503) and error.retry_after is not None and error.retry_after <= _LONGEST_PAUSE


def _read_json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise ApiError(response.status_code, "Unreadable answer", response.text[:200]) from error


def _timeout(request: Request) -> httpx.Timeout:
    return httpx.Timeout(request.timeout, connect=10.0)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, 256 << 10):
            yield chunk


class _Tasks:
    """What runs tasks: a server, or a session."""

    _prefix = ""

    def _json(self, request: Request) -> Any:
        raise NotImplementedError

    def _events(self, request: Request) -> Iterator[Event]:
        raise NotImplementedError

    def execute(
        self, tasks: Sequence[TaskRequest], connect: Sequence[tuple[str, str]] | None = None
    ) -> list[TaskResult]:
        """Runs tasks; `connect` joins their streams by pipes. One result for each, in order."""
        body = requests.tasks(tasks, connect)
        answer = self._json(requests.execute(body, self._prefix))
        return cast("list[TaskResult]", answer["results"])

    def command(self, command: str, args: Sequence[str] = (), **more: Any) -> TaskResult:
        """Runs a command; `more` is what else a task has, such as `stdin`, `files`, `image`, `resource_limits`."""
        task = requests.command(command, args, more)
        return (self.execute([cast("TaskRequest", task)]))[0]

    def run(self, language: str, code: str, **more: Any) -> TaskResult:
        """Runs a program in one of the languages of `languages()`, compiled if that is compiled."""
        task = requests.language(language, code, more)
        return (self.execute([cast("TaskRequest", task)]))[0]

    def stream(self, tasks: Sequence[TaskRequest], connect: Sequence[tuple[str, str]] | None = None) -> Iterator[Event]:
        """Runs tasks, and tells what happens as it does. Who stops listening ends them."""
        return self._events(requests.stream(requests.tasks(tasks, connect), self._prefix))


class Faber(_Tasks):
    """A Faber server."""

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        retries: int = 3,
        client: httpx.Client | None = None,
    ) -> None:
        """
        :param url: the server's address; without it `FABER_URL`, or http://127.0.0.1:8080.
        :param key: an API key; without it `FABER_API_KEY`, if there is one.
        :param retries: how often what was certainly not run is tried again.
        :param client: a client of one's own, with other proxies or certificates; it is not closed here.
        """
        self._url = requests.address(url)
        self._headers = requests.headers(key)
        self._retries = retries
        self._is_own = client is None
        self._client = client or httpx.Client()

    def __enter__(self) -> Faber:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        if self._is_own:
            self._client.close()

    def health(self) -> Health:
        """Whether the server runs, and which version."""
        return cast("Health", self._json(Request("GET", "/health", timeout=10)))

    def images(self) -> list[ImageInfo]:
        """What tasks can run in."""
        return cast("list[ImageInfo]", (self._json(Request("GET", "/images", timeout=30)))["images"])

    def languages(self) -> list[Language]:
        """The languages whose images are there."""
        return cast("list[Language]", self._json(Request("GET", "/languages", timeout=30)))

    def judge(self, judgement: JudgeRequest) -> JudgeResponse:
        """Runs a program against cases, with a verdict for each and for the whole."""
        return cast("JudgeResponse", self._json(Request("POST", "/judge", json=judgement)))

    def put_blob(self, content: Source) -> BlobInfo:
        """Keeps bytes, or a file, under their digest."""
        return cast("BlobInfo", self._json(Request("PUT", "/blobs", content=content)))

    def get_blob(self, blob: str) -> bytes:
        """A blob's bytes."""
        return (self._send(Request("GET", requests.named("blobs", blob)))).content

    def save_blob(self, blob: str, path: Path) -> None:
        """Writes a blob into a file, without holding it."""
        request = Request("GET", requests.named("blobs", blob))
        with self._open(request) as response, path.open("wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)

    def delete_blob(self, blob: str) -> None:
        """Takes a blob out of one's own."""
        self._send(Request("DELETE", requests.named("blobs", blob), timeout=30))

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> JobAccepted:
        """Has a body of /execute or /judge answered later, with `retry` and `callback` where wanted."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return cast("JobAccepted", self._json(Request("POST", "/jobs", json=body, headers=headers, timeout=60)))

    def job(self, job: str) -> Job:
        """A job as it is."""
        return cast("Job", self._json(Request("GET", requests.named("jobs", job), timeout=30)))

    def wait(self, job: str, timeout: float | None = None) -> Job:
        """Waits for a job's end, for so many seconds at most: it may not have ended then."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _WAIT if until is None else min(_WAIT, until - time.monotonic())
            told = cast("Job", self._json(requests.wait(job, left)))
            is_over = told["state"] not in ("queued", "running")
            if is_over or (until is not None and time.monotonic() >= until):
                return told

    def jobs(self, limit: int | None = None, cursor: str | None = None) -> JobList:
        """One's own jobs, the newest first, page by page."""
        params = {name: str(value) for name, value in (("limit", limit), ("cursor", cursor)) if value is not None}
        return cast("JobList", self._json(Request("GET", "/jobs", params=params, timeout=30)))

    def cancel(self, job: str) -> None:
        """Cancels a job that has not ended, and forgets one that has."""
        self._send(Request("DELETE", requests.named("jobs", job), timeout=30))

    def sessions(self) -> list[SessionInfo]:
        """One's own sessions that have not ended."""
        return cast("list[SessionInfo]", (self._json(Request("GET", "/sessions", timeout=30)))["sessions"])

    def session(self, **options: Any) -> Session:
        """A container that stays, made when this is entered and ended when it is left.

        Of `image`, `files`, `archives`, `env`, `resource_limits`, `idle_timeout` and `lifetime` what is wanted.
        """
        return Session(self, options)

    def _json(self, request: Request) -> Any:
        return _read_json(self._send(request))

    def _send(self, request: Request) -> httpx.Response:
        with self._open(request) as response:
            try:
                response.read()
            except httpx.TransportError as error:
                raise ConnectionFailed(f"the answer broke off: {error or type(error).__name__}") from error
            return response

    def _events(self, request: Request) -> Iterator[Event]:
        parser = Parser()
        with self._open(request) as response:
            try:
                for chunk in response.iter_bytes():
                    yield from parser.feed(chunk)
            except httpx.TransportError as error:
                raise StreamBroken(str(error)) from error
        if not parser.is_over:
            raise StreamBroken("the stream ended before it was done")

    def _open(self, request: Request) -> _Opened:
        return _Opened(self, request)

    def _begin(self, request: Request) -> httpx.Response:
        """An answer whose body is yet to come. What was certainly not run is tried again."""
        tries = 0
        while True:
            content: Any = request.content
            file = content.open("rb") if isinstance(content, Path) else None
            built = self._client.build_request(
                request.method,
                self._url + request.path,
                json=request.json,
                content=file or content,
                params=dict(request.params),
                headers={**self._headers, **request.headers},
                timeout=_timeout(request),
            )
            delay = 0.1 * 2**tries
            response: httpx.Response | None = None
            try:
                response = self._client.send(built, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if tries >= self._retries:
                    raise ConnectionFailed(f"{self._url}: {error}") from error
            except httpx.TransportError as error:
                raise ConnectionFailed(f"{self._url}: {error or type(error).__name__}") from error
            finally:
                if file is not None:
                    file.close()
            if response is not None:
                if response.is_success:
                    return response
                response.read()
                response.close()
                refusal = of_response(response)
                if tries >= self._retries or not _may_try_again(refusal):
                    raise refusal
                delay = refusal.retry_after or delay
            time.sleep(delay)
            tries += 1


class _Opened:
    """An answer, closed when it is left."""

    def __init__(self, faber: Faber, request: Request) -> None:
        self._faber = faber
        self._request = request
        self._response: httpx.Response | None = None

    def __enter__(self) -> httpx.Response:
        self._response = self._faber._begin(self._request)
        return self._response

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._response is not None:
            self._response.close()


class Session(_Tasks):
    """A container that stays: what is run in it finds what was left there before."""

    def __init__(self, faber: Faber, options: Mapping[str, Any]) -> None:
        self._faber = faber
        self._options = options
        self._info: SessionInfo | None = None

    def __enter__(self) -> Session:
        made = self._faber._json(Request("POST", "/sessions", json=self._options, timeout=60))
        self._info = cast("SessionInfo", made)
        self._prefix = f"/sessions/{self._info['id']}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def id(self) -> str:
        """Its name at the server."""
        if self._info is None:
            raise ValueError("the session was not entered")
        return self._info["id"]

    def info(self) -> SessionInfo:
        """What it is, or why it has ended."""
        return cast("SessionInfo", self._faber._json(Request("GET", self._prefix, timeout=30)))

    def end(self) -> None:
        """Ends it; one that has ended is none the worse for it."""
        try:
            self._faber._send(Request("DELETE", self._prefix, timeout=30))
        except ApiError as error:
            if error.status not in (404, 410):
                raise

    def write(self, path: str, content: Source, mode: str = "0644") -> None:
        """Writes a file of its workspace, in the place of what is there."""
        path = requests.file(self._prefix, path)
        self._faber._send(Request("PUT", path, content=content, params={"mode": mode}))

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        return (self._faber._send(Request("GET", requests.file(self._prefix, path)))).content

    def remove(self, path: str) -> None:
        """Removes a file, a link, or an empty directory."""
        self._faber._send(Request("DELETE", requests.file(self._prefix, path), timeout=30))

    def list(self, path: str = "") -> list[Entry]:
        """What a directory holds; without a path the workspace itself."""
        request = Request("GET", f"{self._prefix}/files", timeout=30)
        if path:
            request = Request("GET", requests.file(self._prefix, path), params={"list": ""}, timeout=30)
        return cast("list[Entry]", (self._faber._json(request))["entries"])

    def snapshot(self) -> Snapshot:
        """Its workspace as a blob, which `archives` of a task or of another session takes."""
        return cast("Snapshot", self._faber._json(Request("POST", f"{self._prefix}/snapshot")))

    def _json(self, request: Request) -> Any:
        return self._faber._json(request)

    def _events(self, request: Request) -> Iterator[Event]:
        return self._faber._events(request)


class _AsyncTasks:
    """What runs tasks: a server, or a session."""

    _prefix = ""

    async def _json(self, request: Request) -> Any:
        raise NotImplementedError

    def _events(self, request: Request) -> AsyncIterator[Event]:
        raise NotImplementedError

    async def execute(
        self, tasks: Sequence[TaskRequest], connect: Sequence[tuple[str, str]] | None = None
    ) -> list[TaskResult]:
        """Runs tasks; `connect` joins their streams by pipes. One result for each, in order."""
        body = requests.tasks(tasks, connect)
        answer = await self._json(requests.execute(body, self._prefix))
        return cast("list[TaskResult]", answer["results"])

    async def command(self, command: str, args: Sequence[str] = (), **more: Any) -> TaskResult:
        """Runs a command; `more` is what else a task has, such as `stdin`, `files`, `image`, `resource_limits`."""
        task = requests.command(command, args, more)
        return (await self.execute([cast("TaskRequest", task)]))[0]

    async def run(self, language: str, code: str, **more: Any) -> TaskResult:
        """Runs a program in one of the languages of `languages()`, compiled if that is compiled."""
        task = requests.language(language, code, more)
        return (await self.execute([cast("TaskRequest", task)]))[0]

    def stream(
        self, tasks: Sequence[TaskRequest], connect: Sequence[tuple[str, str]] | None = None
    ) -> AsyncIterator[Event]:
        """Runs tasks, and tells what happens as it does. Who stops listening ends them."""
        return self._events(requests.stream(requests.tasks(tasks, connect), self._prefix))


class AsyncFaber(_AsyncTasks):
    """A Faber server."""

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        retries: int = 3,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        """
        :param url: the server's address; without it `FABER_URL`, or http://127.0.0.1:8080.
        :param key: an API key; without it `FABER_API_KEY`, if there is one.
        :param retries: how often what was certainly not run is tried again.
        :param client: a client of one's own, with other proxies or certificates; it is not closed here.
        """
        self._url = requests.address(url)
        self._headers = requests.headers(key)
        self._retries = retries
        self._is_own = client is None
        self._client = client or httpx.AsyncClient()

    async def __aenter__(self) -> AsyncFaber:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes its connections."""
        if self._is_own:
            await self._client.aclose()

    async def health(self) -> Health:
        """Whether the server runs, and which version."""
        return cast("Health", await self._json(Request("GET", "/health", timeout=10)))

    async def images(self) -> list[ImageInfo]:
        """What tasks can run in."""
        return cast("list[ImageInfo]", (await self._json(Request("GET", "/images", timeout=30)))["images"])

    async def languages(self) -> list[Language]:
        """The languages whose images are there."""
        return cast("list[Language]", await self._json(Request("GET", "/languages", timeout=30)))

    async def judge(self, judgement: JudgeRequest) -> JudgeResponse:
        """Runs a program against cases, with a verdict for each and for the whole."""
        return cast("JudgeResponse", await self._json(Request("POST", "/judge", json=judgement)))

    async def put_blob(self, content: Source) -> BlobInfo:
        """Keeps bytes, or a file, under their digest."""
        return cast("BlobInfo", await self._json(Request("PUT", "/blobs", content=content)))

    async def get_blob(self, blob: str) -> bytes:
        """A blob's bytes."""
        return (await self._send(Request("GET", requests.named("blobs", blob)))).content

    async def save_blob(self, blob: str, path: Path) -> None:
        """Writes a blob into a file, without holding it."""
        request = Request("GET", requests.named("blobs", blob))
        async with self._open(request) as response:
            with path.open("wb") as file:
                async for chunk in response.aiter_bytes():
                    file.write(chunk)

    async def delete_blob(self, blob: str) -> None:
        """Takes a blob out of one's own."""
        await self._send(Request("DELETE", requests.named("blobs", blob), timeout=30))

    async def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> JobAccepted:
        """Has a body of /execute or /judge answered later, with `retry` and `callback` where wanted."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return cast("JobAccepted", await self._json(Request("POST", "/jobs", json=body, headers=headers, timeout=60)))

    async def job(self, job: str) -> Job:
        """A job as it is."""
        return cast("Job", await self._json(Request("GET", requests.named("jobs", job), timeout=30)))

    async def wait(self, job: str, timeout: float | None = None) -> Job:
        """Waits for a job's end, for so many seconds at most: it may not have ended then."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _WAIT if until is None else min(_WAIT, until - time.monotonic())
            told = cast("Job", await self._json(requests.wait(job, left)))
            is_over = told["state"] not in ("queued", "running")
            if is_over or (until is not None and time.monotonic() >= until):
                return told

    async def jobs(self, limit: int | None = None, cursor: str | None = None) -> JobList:
        """One's own jobs, the newest first, page by page."""
        params = {name: str(value) for name, value in (("limit", limit), ("cursor", cursor)) if value is not None}
        return cast("JobList", await self._json(Request("GET", "/jobs", params=params, timeout=30)))

    async def cancel(self, job: str) -> None:
        """Cancels a job that has not ended, and forgets one that has."""
        await self._send(Request("DELETE", requests.named("jobs", job), timeout=30))

    async def sessions(self) -> list[SessionInfo]:
        """One's own sessions that have not ended."""
        return cast("list[SessionInfo]", (await self._json(Request("GET", "/sessions", timeout=30)))["sessions"])

    def session(self, **options: Any) -> AsyncSession:
        """A container that stays, made when this is entered and ended when it is left.

        Of `image`, `files`, `archives`, `env`, `resource_limits`, `idle_timeout` and `lifetime` what is wanted.
        """
        return AsyncSession(self, options)

    async def _json(self, request: Request) -> Any:
        return _read_json(await self._send(request))

    async def _send(self, request: Request) -> httpx.Response:
        async with self._open(request) as response:
            try:
                await response.aread()
            except httpx.TransportError as error:
                raise ConnectionFailed(f"the answer broke off: {error or type(error).__name__}") from error
            return response

    async def _events(self, request: Request) -> AsyncIterator[Event]:
        parser = Parser()
        async with self._open(request) as response:
            try:
                async for chunk in response.aiter_bytes():
                    for event in parser.feed(chunk):
                        yield event
            except httpx.TransportError as error:
                raise StreamBroken(str(error)) from error
        if not parser.is_over:
            raise StreamBroken("the stream ended before it was done")

    def _open(self, request: Request) -> _AsyncOpened:
        return _AsyncOpened(self, request)

    async def _begin(self, request: Request) -> httpx.Response:
        """An answer whose body is yet to come. What was certainly not run is tried again."""
        tries = 0
        while True:
            content: Any = request.content
            if isinstance(content, Path):
                content = _chunks(content)
            built = self._client.build_request(
                request.method,
                self._url + request.path,
                json=request.json,
                content=content,
                params=dict(request.params),
                headers={**self._headers, **request.headers},
                timeout=_timeout(request),
            )
            delay = 0.1 * 2**tries
            try:
                response = await self._client.send(built, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if tries >= self._retries:
                    raise ConnectionFailed(f"{self._url}: {error}") from error
            except httpx.TransportError as error:
                raise ConnectionFailed(f"{self._url}: {error or type(error).__name__}") from error
            else:
                if response.is_success:
                    return response
                await response.aread()
                await response.aclose()
                refusal = of_response(response)
                if tries >= self._retries or not _may_try_again(refusal):
                    raise refusal
                delay = refusal.retry_after or delay
            await asyncio.sleep(delay)
            tries += 1


class _AsyncOpened:
    """An answer, closed when it is left."""

    def __init__(self, faber: AsyncFaber, request: Request) -> None:
        self._faber = faber
        self._request = request
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> httpx.Response:
        self._response = await self._faber._begin(self._request)
        return self._response

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._response is not None:
            await self._response.aclose()


class AsyncSession(_AsyncTasks):
    """A container that stays: what is run in it finds what was left there before."""

    def __init__(self, faber: AsyncFaber, options: Mapping[str, Any]) -> None:
        self._faber = faber
        self._options = options
        self._info: SessionInfo | None = None

    async def __aenter__(self) -> AsyncSession:
        made = await self._faber._json(Request("POST", "/sessions", json=self._options, timeout=60))
        self._info = cast("SessionInfo", made)
        self._prefix = f"/sessions/{self._info['id']}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.end()

    @property
    def id(self) -> str:
        """Its name at the server."""
        if self._info is None:
            raise ValueError("the session was not entered")
        return self._info["id"]

    async def info(self) -> SessionInfo:
        """What it is, or why it has ended."""
        return cast("SessionInfo", await self._faber._json(Request("GET", self._prefix, timeout=30)))

    async def end(self) -> None:
        """Ends it; one that has ended is none the worse for it."""
        try:
            await self._faber._send(Request("DELETE", self._prefix, timeout=30))
        except ApiError as error:
            if error.status not in (404, 410):
                raise

    async def write(self, path: str, content: Source, mode: str = "0644") -> None:
        """Writes a file of its workspace, in the place of what is there."""
        path = requests.file(self._prefix, path)
        await self._faber._send(Request("PUT", path, content=content, params={"mode": mode}))

    async def read(self, path: str) -> bytes:
        """A file's bytes."""
        return (await self._faber._send(Request("GET", requests.file(self._prefix, path)))).content

    async def remove(self, path: str) -> None:
        """Removes a file, a link, or an empty directory."""
        await self._faber._send(Request("DELETE", requests.file(self._prefix, path), timeout=30))

    async def list(self, path: str = "") -> list[Entry]:
        """What a directory holds; without a path the workspace itself."""
        request = Request("GET", f"{self._prefix}/files", timeout=30)
        if path:
            request = Request("GET", requests.file(self._prefix, path), params={"list": ""}, timeout=30)
        return cast("list[Entry]", (await self._faber._json(request))["entries"])

    async def snapshot(self) -> Snapshot:
        """Its workspace as a blob, which `archives` of a task or of another session takes."""
        return cast("Snapshot", await self._faber._json(Request("POST", f"{self._prefix}/snapshot")))

    async def _json(self, request: Request) -> Any:
        return await self._faber._json(request)

    def _events(self, request: Request) -> AsyncIterator[Event]:
        return self._faber._events(request)
