/** The server's REST calls: the token, the header that other sites cannot send, errors that say what, where and how. */
import { obj, text } from "./read";
import type { ErrorText } from "./api";

/** Under which name the token lies in the tab's storage. */
export const KEY = "phase8-token";
export const BASE = "/api/phase8";

/** The token of this browser tab; taken from the address (`#token=...`) the first time, and removed from it. */
export function token(): string | null {
  if (typeof window === "undefined") return null;
  const given = new URLSearchParams(window.location.hash.slice(1)).get("token");
  if (given !== null) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", window.location.pathname + window.location.search);
  }
  return sessionStorage.getItem(KEY);
}

export function setToken(value: string): void {
  sessionStorage.setItem(KEY, value);
}

export class RestError extends Error {
  constructor(
    readonly status: number,
    readonly error: ErrorText,
  ) {
    super(error.what);
  }
}

const UNREACHABLE: ErrorText = {
  what: "the server does not answer",
  where: BASE,
  fix: "start it again with `python -m phase8 dashboard`; this page goes on by itself",
};

export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const known = token();
  if (known !== null) headers.set("Authorization", `Bearer ${known}`);
  if (init.method !== undefined && init.method !== "GET") {
    headers.set("X-Phase8", "1");
    headers.set("Content-Type", "application/json");
  }
  let response: Response;
  try {
    response = await fetch(BASE + path, { ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new RestError(0, UNREACHABLE);
  }
  if (!response.ok) {
    const body = obj(obj(await response.json().catch(() => null)).error);
    throw new RestError(response.status, {
      what: text(body.what) || `the server answered ${response.status}`,
      where: text(body.where) || path,
      fix: text(body.fix),
    });
  }
  return response;
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await call(path, signal ? { signal } : {})).json()) as T;
}

export async function send<T>(method: "POST" | "PATCH" | "DELETE", path: string, body: unknown = {}): Promise<T> {
  const response = await call(path, { method, body: JSON.stringify(body) });
  return (response.status === 204 ? null : await response.json()) as T;
}

/** Saves what a call answers as a file, under the name that the server gives it. */
export async function download(path: string, fallback: string): Promise<void> {
  const response = await call(path);
  const named = /filename="?([^";]+)"?/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
  save(await response.blob(), named ?? fallback);
}

export function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function asError(error: unknown): ErrorText {
  if (error instanceof RestError) return error.error;
  return { what: error instanceof Error ? error.message : String(error), where: "this page", fix: "load it again" };
}
