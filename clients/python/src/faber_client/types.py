"""The types of Faber's API: made by `generate` from its OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from typing_extensions import NotRequired, TypedDict


class ArchiveRequest2(TypedDict):
    format: str


class BlobInfo(TypedDict):
    blob: str
    size: int


CallbackState: TypeAlias = Literal['waiting', 'pending', 'delivered', 'failed']


class Compare1(TypedDict):
    float: float


Compare: TypeAlias = str | Compare1


class DetailedCounters(TypedDict):
    forks_refused: NotRequired[int | None]
    involuntary_switches: NotRequired[int | None]
    major_faults: NotRequired[int | None]
    minor_faults: NotRequired[int | None]
    oom_kills: NotRequired[int | None]
    throttled_ns: NotRequired[int | None]
    voluntary_switches: NotRequired[int | None]


class DetailedLimits(TypedDict):
    cpu_time_limit: int
    cpus: NotRequired[float | None]
    max_file_descriptors: int
    max_file_size: NotRequired[int | None]
    max_output_size: int
    max_processes: int
    memory_limit: int
    stack_limit: int
    wall_time_limit: int
    workspace_limit: int


class DetailedTimings(TypedDict):
    collect_ns: int
    queued_ns: int
    run_ns: int
    setup_ns: int


EntryType: TypeAlias = Literal['file', 'directory', 'symlink', 'other']


class ErrorBody(TypedDict):
    details: str
    error: str


class FileResult(TypedDict):
    base64: NotRequired[str | None]
    blob: NotRequired[str | None]
    mode: str
    sha256: str
    size: int
    text: NotRequired[str | None]


class Health(TypedDict):
    status: str
    timestamp: str
    version: str


class JobCallbackState(TypedDict):
    attempts: int
    delivered_at: str | None
    error: str | None
    next_attempt_at: str | None
    state: CallbackState
    url: str


class Callback(TypedDict):
    secret: str
    url: str


JobState: TypeAlias = Literal['queued', 'running', 'done', 'cancelled', 'lost']


class JobSummary(TypedDict):
    callback: NotRequired[JobCallbackState | None]
    created_at: str
    ended_at: str | None
    id: str
    position: int | None
    started_at: str | None
    state: JobState


class Language(TypedDict):
    compile: list[str]
    file: str
    image: str
    language: str
    run: list[str]
    version: str


class LanguageInfo(TypedDict):
    compile: list[str]
    file: str
    run: list[str]


class LimitsExceeded(TypedDict):
    cpu_time_limit_exceeded: bool
    file_descriptor_limit_exceeded: bool
    output_limit_exceeded: bool
    process_limit_exceeded: bool
    wall_time_limit_exceeded: bool


class LiveEvent1(TypedDict):
    compile: NotRequired[bool]
    position: int
    task: int


class LiveEvent2(TypedDict):
    compile: NotRequired[bool]
    task: int


class LiveEvent3(TypedDict):
    base64: NotRequired[str | None]
    offset: int
    task: int
    text: NotRequired[str | None]


class LiveEvent4(TypedDict):
    compile: NotRequired[bool]
    cpu_time_ns: int
    memory_bytes: int
    task: int
    wall_time_ns: int


class LiveEvent7(TypedDict):
    details: str
    error: str


class Most(TypedDict):
    cpu_time_ns: int
    memory_peak_bytes: int
    wall_time_ns: int


class Omitted(TypedDict):
    count: int
    files: dict[str, str]


OnOutputLimit: TypeAlias = Literal['kill', 'discard']


OutputEncoding: TypeAlias = Literal['utf8', 'base64', 'auto']


class ResourceLimits(TypedDict):
    cpu_time_limit: NotRequired[int | None]
    cpus: NotRequired[float | None]
    max_file_descriptors: NotRequired[int | None]
    max_file_size: NotRequired[int | None]
    max_output_size: NotRequired[int | None]
    max_processes: NotRequired[int | None]
    memory_limit: NotRequired[int | None]
    stack_limit: NotRequired[int | None]
    wall_time_limit: NotRequired[int | None]
    workspace_limit: NotRequired[int | None]


class ResourceUsage(TypedDict):
    cpu_time_ns: int
    file_descriptors: int
    io_read_bytes: int
    io_write_bytes: int
    memory_current_bytes: int
    memory_peak_bytes: int
    process_count: int
    system_time_ns: int
    user_time_ns: int
    wall_time_ns: int


RunWhen: TypeAlias = Literal['success', 'always']


class SessionLimits(TypedDict):
    max_processes: int
    memory_limit: int
    workspace_limit: int


class Snapshot(TypedDict):
    blob: str
    format: str
    size: int


Status: TypeAlias = Literal[
    'Success',
    'Failure',
    'NotExecuted',
    'ResourceLimitExceeded',
    'Timeout',
    'MemoryLimitExceeded',
    'CpuLimitExceeded',
]


Stop: TypeAlias = Literal['never', 'first_failure']


Stream: TypeAlias = Literal['stdout', 'stderr']


class Text1(TypedDict):
    base64: str


Text: TypeAlias = str | Text1


Verdict: TypeAlias = Literal[
    'Accepted',
    'WrongAnswer',
    'CompileError',
    'TimeLimitExceeded',
    'MemoryLimitExceeded',
    'OutputLimitExceeded',
    'RuntimeError',
    'Skipped',
    'CheckerError',
    'NotExecuted',
]


class Window(TypedDict):
    columns: int
    rows: int


ArchiveRequest1 = TypedDict(
    'ArchiveRequest1',
    {
        'base64': NotRequired[str | None],
        'blob': NotRequired[str | None],
        'file': NotRequired[str | None],
        'from': NotRequired[str | None],
        'stream': NotRequired[Stream | None],
        'text': NotRequired[str | None],
    },
)


class ArchiveRequest3(ArchiveRequest1, ArchiveRequest2):
    pass


ArchiveRequest: TypeAlias = ArchiveRequest3


Content1 = TypedDict(
    'Content1',
    {
        'base64': NotRequired[str | None],
        'blob': NotRequired[str | None],
        'file': NotRequired[str | None],
        'from': NotRequired[str | None],
        'stream': NotRequired[Stream | None],
        'text': NotRequired[str | None],
    },
)


Content: TypeAlias = str | Content1


class Detail(TypedDict):
    counters: NotRequired[DetailedCounters]
    limits: NotRequired[DetailedLimits]
    prepared: NotRequired[bool]
    signal: NotRequired[str | None]
    stderr_bytes: NotRequired[int | None]
    stderr_truncated: NotRequired[bool]
    stdout_bytes: NotRequired[int | None]
    stdout_truncated: NotRequired[bool]
    timings: NotRequired[DetailedTimings]


class Entry(TypedDict):
    mode: str
    name: str
    size: int
    type: EntryType


class Expect(TypedDict):
    compare: NotRequired[Compare | None]
    stdout: Content


FileContent1 = TypedDict(
    'FileContent1',
    {
        'base64': NotRequired[str | None],
        'blob': NotRequired[str | None],
        'directory': NotRequired[bool | None],
        'file': NotRequired[str | None],
        'from': NotRequired[str | None],
        'mode': NotRequired[str | None],
        'stream': NotRequired[Stream | None],
        'symlink': NotRequired[str | None],
        'text': NotRequired[str | None],
    },
)


FileContent: TypeAlias = str | FileContent1


class ImageInfo(TypedDict):
    description: str
    digest: str
    language: NotRequired[LanguageInfo | None]
    name: str
    resource_limits: ResourceLimits
    versions: dict[str, str]


class ImageList(TypedDict):
    images: list[ImageInfo]


class Job(TypedDict):
    callback: NotRequired[JobCallbackState]
    created_at: str
    ended_at: str | None
    id: str
    position: int | None
    response: dict[str, Any] | None
    started_at: str | None
    state: JobState


class JobAccepted(TypedDict):
    id: str
    state: JobState


class JobList(TypedDict):
    jobs: list[JobSummary]
    next: str | None


class Listing(TypedDict):
    entries: list[Entry]


class LiveEvent5(TypedDict):
    bytes: int
    stream: Stream
    task: int


class SessionInfo(TypedDict):
    created_at: NotRequired[str | None]
    expires_at: NotRequired[str | None]
    id: str
    idle_timeout: NotRequired[str | None]
    image: NotRequired[str | None]
    lifetime: NotRequired[str | None]
    limits: NotRequired[SessionLimits | None]
    reason: NotRequired[str | None]
    state: str


class SessionList(TypedDict):
    sessions: list[SessionInfo]


class SessionRequest(TypedDict):
    archives: NotRequired[list[ArchiveRequest] | None]
    env: NotRequired[dict[str, str]]
    files: NotRequired[dict[str, FileContent]]
    idle_timeout: NotRequired[str | None]
    image: NotRequired[str | None]
    lifetime: NotRequired[str | None]
    resource_limits: NotRequired[ResourceLimits | None]


class TaskRequest(TypedDict):
    archives: NotRequired[list[ArchiveRequest] | None]
    args: NotRequired[list[str] | None]
    cache: NotRequired[bool | None]
    code: NotRequired[Content | None]
    command: NotRequired[str | None]
    compile_limits: NotRequired[ResourceLimits | None]
    detail: NotRequired[bool | None]
    env: NotRequired[dict[str, str]]
    expect: NotRequired[Expect | None]
    image: NotRequired[str | None]
    language: NotRequired[str | None]
    name: NotRequired[str | None]
    needs: NotRequired[list[str] | None]
    on_output_limit: NotRequired[OnOutputLimit | None]
    output_encoding: NotRequired[OutputEncoding | None]
    outputs: NotRequired[list[str] | None]
    prepared: NotRequired[bool | None]
    record: NotRequired[list[Stream] | None]
    resource_limits: NotRequired[ResourceLimits | None]
    run_when: NotRequired[RunWhen | None]
    stdin: NotRequired[Content | None]
    tty: NotRequired[Window | None]


class TaskResult(Detail):
    cached: NotRequired[bool | None]
    compile: NotRequired[TaskResult | None]
    ended_first: NotRequired[bool | None]
    error: NotRequired[str | None]
    exit_code: NotRequired[int | None]
    files: NotRequired[dict[str, FileResult]]
    message: NotRequired[str | None]
    missing_outputs: NotRequired[list[str] | None]
    name: NotRequired[str | None]
    omitted_outputs: NotRequired[Omitted | None]
    output: NotRequired[Text | None]
    resource_limits_exceeded: LimitsExceeded
    resource_usage: ResourceUsage
    status: Status
    stderr: NotRequired[Text | None]
    stdout: NotRequired[Text | None]
    verdict: NotRequired[Verdict | None]


class CaseRequest(TypedDict):
    args: NotRequired[list[str] | None]
    env: NotRequired[dict[str, str]]
    expected: NotRequired[Content | None]
    files: NotRequired[dict[str, FileContent]]
    name: NotRequired[str | None]
    resource_limits: NotRequired[ResourceLimits | None]
    stdin: NotRequired[Content | None]


class CaseResult(TaskResult):
    message: NotRequired[str | None]
    name: str
    verdict: Verdict


class ExecuteRequest(TypedDict):
    connect: NotRequired[list[list[str]] | None]
    tasks: list[TaskRequest]


class ExecuteResponse(TypedDict):
    results: list[TaskResult]


class JobRequest1(TypedDict):
    callback: NotRequired[Callback]
    connect: NotRequired[list[list[str]] | None]
    retry: NotRequired[int]
    tasks: list[TaskRequest]


class JobRequest2(TypedDict):
    args: NotRequired[list[str] | None]
    callback: NotRequired[Callback]
    cases: list[CaseRequest]
    code: NotRequired[Content | None]
    command: NotRequired[str | None]
    compare: NotRequired[Compare | None]
    compile_limits: NotRequired[ResourceLimits | None]
    env: NotRequired[dict[str, str]]
    files: NotRequired[dict[str, FileContent]]
    image: NotRequired[str | None]
    interactor: NotRequired[TaskRequest | None]
    language: NotRequired[str | None]
    outputs: NotRequired[bool | None]
    resource_limits: NotRequired[ResourceLimits | None]
    retry: NotRequired[int]
    stop: NotRequired[Stop | None]


JobRequest: TypeAlias = JobRequest1 | JobRequest2


class JudgeRequest(TypedDict):
    args: NotRequired[list[str] | None]
    cases: list[CaseRequest]
    code: NotRequired[Content | None]
    command: NotRequired[str | None]
    compare: NotRequired[Compare | None]
    compile_limits: NotRequired[ResourceLimits | None]
    env: NotRequired[dict[str, str]]
    files: NotRequired[dict[str, FileContent]]
    image: NotRequired[str | None]
    interactor: NotRequired[TaskRequest | None]
    language: NotRequired[str | None]
    outputs: NotRequired[bool | None]
    resource_limits: NotRequired[ResourceLimits | None]
    stop: NotRequired[Stop | None]


class JudgeResponse(TypedDict):
    cases: list[CaseResult]
    compile: NotRequired[TaskResult | None]
    max: Most
    verdict: Verdict


class LiveEvent6(TypedDict):
    result: TaskResult
    task: int


LiveEvent: TypeAlias = (
    LiveEvent1
    | LiveEvent2
    | LiveEvent3
    | LiveEvent4
    | LiveEvent5
    | LiveEvent6
    | LiveEvent7
    | dict[str, Any]
)
