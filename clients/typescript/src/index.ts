// A client for Faber: untrusted programs in fresh containers, over HTTP.

import { ApiError, ConnectionFailed, FaberError, StreamBroken, errorOf } from "./errors.js";
import { type Event, bytesOf, eventsOf } from "./events.js";
import type { components } from "./types.js";

export { ApiError, ConnectionFailed, FaberError, StreamBroken, bytesOf };
export type { Event };

type Schemas = components["schemas"];
export type Task = Partial<Schemas["TaskRequest"]>;
export type TaskResult = Schemas["TaskResult"];
export type JudgeRequest = Schemas["JudgeRequest"];
export type JudgeResponse = Schemas["JudgeResponse"];
export type BlobInfo = Schemas["BlobInfo"];
export type Entry = Schemas["Entry"];
export type Health = Schemas["Health"];
export type ImageInfo = Schemas["ImageInfo"];
export type Job = Schemas["Job"];
export type JobAccepted = Schemas["JobAccepted"];
export type JobList = Schemas["JobList"];
export type Language = Schemas["Language"];
export type SessionInfo = Schemas["SessionInfo"];
export type SessionRequest = Partial<Schemas["SessionRequest"]>;
export type Snapshot = Schemas["Snapshot"];

/** Streams to join, such as `["ask.stdout", "reply.stdin"]`. */
export type Connections = [string, string][];
type Content = Uint8Array<ArrayBuffer> | Blob | string;

export interface Options {
  /** An API key; in Node.js without it `FABER_API_KEY`, if there is one. */
  key?: string;
  /** How often what was certainly not run is tried again: 3. */
  retries?: number;
  /** In place of the global one. */
  fetch?: typeof fetch;
}

/** What one call may have. */
export interface Call {
  /** Gives the call up, and ends what runs for it. */
  signal?: AbortSignal;
}

interface Request extends Call {
  method: string;
  path: string;
  json?: unknown;
  content?: Content;
  query?: Record<string, string>;
  headers?: Record<string, string>;
}

function environment(name: string): string | undefined {
  const process = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process;
  return process?.env?.[name] || undefined;
}

/** Whoever is asked to wait longer before it tries again is told so instead; seconds. */
const LONGEST_PAUSE = 60;

/** A part of a path, which leads nowhere else: fetch resolves dots before it asks. */
function segment(name: string): string {
  if (name === "" || name === "." || name === "..") {
    throw new TypeError(`${JSON.stringify(name)} is no name`);
  }
  return encodeURIComponent(name);
}

const sleep = (milliseconds: number) => new Promise<void>((resolve) => setTimeout(resolve, milliseconds));

/** What runs tasks: a server, or a session. */
abstract class Tasks {
  protected abstract readonly prefix: string;
  protected abstract send(request: Request): Promise<Response>;

  protected async json<T>(request: Request): Promise<T> {
    return (await (await this.send(request)).json()) as T;
  }

  /** Runs tasks; one result for each, in order. */
  async execute(tasks: Task[], options: Call & { connect?: Connections } = {}): Promise<TaskResult[]> {
    const { connect, ...call } = options;
    const json = connect === undefined ? { tasks } : { tasks, connect };
    const request = { method: "POST", path: `${this.prefix}/execute`, json, ...call };
    return (await this.json<{ results: TaskResult[] }>(request)).results;
  }

  /** Runs a command; `more` is what else a task has, such as `stdin`, `files`, `image`, `resource_limits`. */
  async command(command: string, args: string[] = [], more: Task = {}, call: Call = {}): Promise<TaskResult> {
    return (await this.execute([{ command, args, ...more }], call))[0] as TaskResult;
  }

  /** Runs a program in one of the languages of `languages()`, compiled if that is compiled. */
  async run(language: string, code: string, more: Task = {}, call: Call = {}): Promise<TaskResult> {
    return (await this.execute([{ language, code, ...more }], call))[0] as TaskResult;
  }

  /** Runs tasks, and tells what happens as it does. Who stops listening ends them. */
  async *stream(tasks: Task[], options: Call & { connect?: Connections } = {}): AsyncGenerator<Event> {
    const { connect, ...call } = options;
    const json = connect === undefined ? { tasks } : { tasks, connect };
    const headers = { Accept: "text/event-stream" };
    const response = await this.send({ method: "POST", path: `${this.prefix}/execute`, json, headers, ...call });
    if (response.body === null) {
      throw new StreamBroken("there is no stream");
    }
    yield* eventsOf(response.body as ReadableStream<Uint8Array>);
  }
}

/** A Faber server. */
export class Faber extends Tasks {
  protected readonly prefix = "";
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #retries: number;
  readonly #fetch: typeof fetch;

  /** @param url The server's address; in Node.js without it `FABER_URL`, or http://127.0.0.1:8080. */
  constructor(url?: string, options: Options = {}) {
    super();
    this.#url = (url ?? environment("FABER_URL") ?? "http://127.0.0.1:8080").replace(/\/+$/, "");
    const key = options.key ?? environment("FABER_API_KEY");
    this.#headers = key === undefined ? {} : { Authorization: `Bearer ${key}` };
    this.#retries = options.retries ?? 3;
    this.#fetch = options.fetch ?? ((...args) => globalThis.fetch(...args));
  }

  /** Whether the server runs, and which version. */
  health(): Promise<Health> {
    return this.json({ method: "GET", path: "/health" });
  }

  /** What tasks can run in. */
  async images(): Promise<ImageInfo[]> {
    return (await this.json<{ images: ImageInfo[] }>({ method: "GET", path: "/images" })).images;
  }

  /** The languages whose images are there. */
  languages(): Promise<Language[]> {
    return this.json({ method: "GET", path: "/languages" });
  }

  /** Runs a program against cases, with a verdict for each and for the whole. */
  judge(judgement: Partial<JudgeRequest>, call: Call = {}): Promise<JudgeResponse> {
    return this.json({ method: "POST", path: "/judge", json: judgement, ...call });
  }

  /** Keeps bytes under their digest. */
  putBlob(content: Content, call: Call = {}): Promise<BlobInfo> {
    return this.json({ method: "PUT", path: "/blobs", content, ...call });
  }

  /** A blob's bytes, as an answer of fetch: `arrayBuffer()`, or `body` to be read as it comes. */
  getBlob(blob: string, call: Call = {}): Promise<Response> {
    return this.send({ method: "GET", path: `/blobs/${segment(blob)}`, ...call });
  }

  /** Takes a blob out of one's own. */
  async deleteBlob(blob: string): Promise<void> {
    await this.send({ method: "DELETE", path: `/blobs/${segment(blob)}` });
  }

  /** Has a body of /execute or /judge answered later, with `retry` and `callback` where wanted. */
  submit(body: object, options: Call & { idempotencyKey?: string } = {}): Promise<JobAccepted> {
    const { idempotencyKey, ...call } = options;
    const headers: Record<string, string> = idempotencyKey === undefined ? {} : { "Idempotency-Key": idempotencyKey };
    return this.json({ method: "POST", path: "/jobs", json: body, headers, ...call });
  }

  /** A job as it is. */
  job(job: string): Promise<Job> {
    return this.json({ method: "GET", path: `/jobs/${segment(job)}` });
  }

  /** Waits for a job's end. */
  async wait(job: string, call: Call = {}): Promise<Job> {
    for (;;) {
      const request = { method: "GET", path: `/jobs/${segment(job)}`, query: { wait: "30s" }, ...call };
      const told = await this.json<Job>(request);
      if (told.state !== "queued" && told.state !== "running") {
        return told;
      }
    }
  }

  /** One's own jobs, the newest first, page by page. */
  jobs(page: { limit?: number; cursor?: string } = {}): Promise<JobList> {
    const query: Record<string, string> = {};
    if (page.limit !== undefined) query["limit"] = String(page.limit);
    if (page.cursor !== undefined) query["cursor"] = page.cursor;
    return this.json({ method: "GET", path: "/jobs", query });
  }

  /** Cancels a job that has not ended, and forgets one that has. */
  async cancel(job: string): Promise<void> {
    await this.send({ method: "DELETE", path: `/jobs/${segment(job)}` });
  }

  /** A container that stays, until `end()`. */
  async session(options: SessionRequest = {}): Promise<Session> {
    const info = await this.json<SessionInfo>({ method: "POST", path: "/sessions", json: options });
    return new Session((request) => this.send(request), info.id);
  }

  /** One's own sessions that have not ended. */
  async sessions(): Promise<SessionInfo[]> {
    return (await this.json<{ sessions: SessionInfo[] }>({ method: "GET", path: "/sessions" })).sessions;
  }

  /** Sends a request. What was certainly not run (429, 503) is tried again, as long as the server says. */
  protected async send(request: Request): Promise<Response> {
    const { method, path, json, content, query, headers, signal } = request;
    const search = query === undefined ? "" : `?${new URLSearchParams(query).toString()}`;
    const init: RequestInit = { method, headers: { ...this.#headers, ...headers } };
    if (signal !== undefined) init.signal = signal;
    if (json !== undefined) {
      init.body = JSON.stringify(json);
      init.headers = { "Content-Type": "application/json", ...init.headers };
    } else if (content !== undefined) {
      init.body = content;
      init.headers = { "Content-Type": "application/octet-stream", ...init.headers };
    }
    for (let tries = 0; ; tries += 1) {
      let response: Response;
      try {
        response = await this.#fetch(`${this.#url}${path}${search}`, init);
      } catch (error) {
        signal?.throwIfAborted();
        const cause = error instanceof Error && error.cause !== undefined ? `: ${String(error.cause)}` : "";
        throw new ConnectionFailed(`${this.#url}: ${String(error)}${cause}`, { cause: error });
      }
      if (response.ok) {
        return response;
      }
      const refusal = await errorOf(response);
      const mayTryAgain = (refusal.status === 429 || refusal.status === 503) && (refusal.retryAfter ?? Infinity) <= LONGEST_PAUSE;
      if (tries >= this.#retries || !mayTryAgain) {
        throw refusal;
      }
      await sleep(1000 * (refusal.retryAfter ?? 1));
      signal?.throwIfAborted();
    }
  }
}

/** A container that stays: what is run in it finds what was left there before. */
export class Session extends Tasks {
  protected readonly prefix: string;
  readonly #send: (request: Request) => Promise<Response>;

  /** @internal */
  constructor(
    send: (request: Request) => Promise<Response>,
    /** Its name at the server. */
    readonly id: string,
  ) {
    super();
    this.#send = send;
    this.prefix = `/sessions/${id}`;
  }

  protected send(request: Request): Promise<Response> {
    return this.#send(request);
  }

  #file(path: string): string {
    return `${this.prefix}/files/${path.split("/").map(segment).join("/")}`;
  }

  /** What it is, or why it has ended. */
  info(): Promise<SessionInfo> {
    return this.json({ method: "GET", path: this.prefix });
  }

  /** Ends it; one that has ended is none the worse for it. */
  async end(): Promise<void> {
    try {
      await this.send({ method: "DELETE", path: this.prefix });
    } catch (error) {
      if (!(error instanceof ApiError && (error.status === 404 || error.status === 410))) throw error;
    }
  }

  /** Writes a file of its workspace, in the place of what is there. */
  async write(path: string, content: Content, mode = "0644"): Promise<void> {
    await this.send({ method: "PUT", path: this.#file(path), content, query: { mode } });
  }

  /** A file's bytes, as an answer of fetch. */
  read(path: string): Promise<Response> {
    return this.send({ method: "GET", path: this.#file(path) });
  }

  /** Removes a file, a link, or an empty directory. */
  async remove(path: string): Promise<void> {
    await this.send({ method: "DELETE", path: this.#file(path) });
  }

  /** What a directory holds; without a path the workspace itself. */
  async list(path?: string): Promise<Entry[]> {
    const request =
      path === undefined
        ? { method: "GET", path: `${this.prefix}/files` }
        : { method: "GET", path: this.#file(path), query: { list: "" } };
    return (await this.json<{ entries: Entry[] }>(request)).entries;
  }

  /** Its workspace as a blob, which `archives` of a task or of another session takes. */
  snapshot(): Promise<Snapshot> {
    return this.json({ method: "POST", path: `${this.prefix}/snapshot` });
  }
}
