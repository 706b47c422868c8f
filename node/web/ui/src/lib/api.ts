/** Requests to the node that served this page. */

import { session } from "./session.svelte";

/** An answer that refuses (RFC 9457), or none at all (`status` 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly field: string | null = null,
    readonly more: Readonly<Record<string, unknown>> = {},
  ) {
    super(detail);
    this.name = "ApiError";
  }
}

type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";

export interface Options {
  body?: unknown;
  /** Made by `newKey` once for each thing that the user wants, and given again when the same is tried again. */
  key?: string;
  signal?: AbortSignal;
}

/** Where requests go: beside the page, wherever that is. */
export const root = new URL("./api/v1/", document.baseURI);

export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("");
}

/** The answer's JSON; undefined if it has no body. Raises `ApiError`. */
export async function request<T>(method: Method, path: string, options: Options = {}): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  if (options.key !== undefined) headers["Idempotency-Key"] = options.key;
  let answer: Response;
  let text: string;
  try {
    answer = await fetch(new URL(path, root), {
      method,
      headers,
      credentials: "same-origin",
      cache: "no-store",
      ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    text = await answer.text();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "no_answer", "the node does not answer");
  }
  if (answer.ok) return (text === "" ? undefined : JSON.parse(text)) as T;
  if (answer.status === 401 && path !== "session" && path !== "password") session.ended();
  throw refusal(answer, text);
}

export const get = <T>(path: string, signal?: AbortSignal) =>
  request<T>("GET", path, signal ? { signal } : {});
export const post = <T>(path: string, body?: unknown, key?: string) =>
  request<T>("POST", path, { body, ...(key === undefined ? {} : { key }) });
export const put = <T>(path: string, body: unknown) => request<T>("PUT", path, { body });
export const patch = <T>(path: string, body: unknown) => request<T>("PATCH", path, { body });
export const del = <T>(path: string) => request<T>("DELETE", path);

/** A sentence for people, of whatever was thrown. */
export function sentence(error: unknown): string {
  if (error instanceof ApiError) return error.detail;
  return error instanceof Error ? error.message : String(error);
}

function refusal(answer: Response, text: string): ApiError {
  try {
    const said = JSON.parse(text) as Record<string, unknown>;
    return new ApiError(
      answer.status,
      typeof said.code === "string" ? said.code : "refused",
      typeof said.detail === "string" ? said.detail : `the node answers ${answer.status}`,
      typeof said.field === "string" ? said.field : null,
      said,
    );
  } catch {
    return new ApiError(answer.status, "refused", `the node answers ${answer.status}`);
  }
}
