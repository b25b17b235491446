// What Faber refuses, and what keeps it from answering.

/** Whatever goes wrong. */
export class FaberError extends Error {
  override name = "FaberError";
}

/** Nobody answers. */
export class ConnectionFailed extends FaberError {
  override name = "ConnectionFailed";
}

/** A stream ended without its end: what became of its tasks is not known. */
export class StreamBroken extends FaberError {
  override name = "StreamBroken";
}

/** An answer that is no success. */
export class ApiError extends FaberError {
  override name = "ApiError";

  constructor(
    readonly status: number,
    readonly error: string,
    readonly details: string,
    /** Seconds, where the server says how long to wait. */
    readonly retryAfter?: number,
  ) {
    super(`${error}: ${details} (HTTP ${status})`);
  }
}

export async function errorOf(response: Response): Promise<ApiError> {
  const text = await response.text();
  const wait = Number(response.headers.get("retry-after") ?? NaN);
  const retryAfter = Number.isFinite(wait) ? wait : undefined;
  try {
    const body = JSON.parse(text) as { error: string; details: string };
    return new ApiError(response.status, body.error, body.details, retryAfter);
  } catch {
    return new ApiError(response.status, response.statusText || "Error", text.slice(0, 200), retryAfter);
  }
}
