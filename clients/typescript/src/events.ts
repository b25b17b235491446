// Streams of events (server-sent events, HTML Living Standard section 9.2).

import { ApiError, StreamBroken } from "./errors.js";
import type { TaskResult } from "./index.js";

/** Something that happened; `task` is the task's place in the request. */
export type Event =
  | { event: "queued"; task: number; position: number; compile?: boolean }
  | { event: "started"; task: number; compile?: boolean }
  | { event: "stdout" | "stderr"; task: number; text?: string; base64?: string; offset: number }
  | { event: "usage"; task: number; cpu_time_ns: number; memory_bytes: number; wall_time_ns: number; compile?: boolean }
  | { event: "dropped"; task: number; stream: "stdout" | "stderr"; bytes: number }
  | { event: "result"; task: number; result: TaskResult }
  | { event: "done" };

/** What was written, of `stdout` and `stderr`. */
export function bytesOf(event: { text?: string; base64?: string }): Uint8Array {
  if (event.base64 !== undefined) {
    return Uint8Array.from(atob(event.base64), (character) => character.charCodeAt(0));
  }
  return new TextEncoder().encode(event.text ?? "");
}

/** The events of a body; throws where it has no end. */
export async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<Event> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let [rest, name, data] = ["", "", ""];
  try {
    for (;;) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (error) {
        throw new StreamBroken(String(error));
      }
      if (chunk.done) {
        throw new StreamBroken("the stream ended before it was done");
      }
      rest += decoder.decode(chunk.value, { stream: true });
      for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n")) {
        const line = rest.slice(0, end);
        rest = rest.slice(end + 1);
        if (line.startsWith("event: ")) {
          name = line.slice(7);
        } else if (line.startsWith("data: ")) {
          data = line.slice(6);
        } else if (line === "" && name !== "") {
          const told = JSON.parse(data) as Record<string, unknown>;
          if (name === "error") {
            throw new ApiError(500, String(told["error"]), String(told["details"]));
          }
          yield { event: name, ...told } as Event;
          if (name === "done") {
            return;
          }
          [name, data] = ["", ""];
        }
      }
    }
  } finally {
    // Who stops listening ends the tasks.
    await reader.cancel().catch(() => undefined);
  }
}
