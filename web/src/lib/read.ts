/** Reading values of which only the server's word says what they are. */

export type Json = Record<string, unknown>;

export function num(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

export function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

export function obj(value: unknown): Json {
  return value !== null && typeof value === "object" && !Array.isArray(value) ? (value as Json) : {};
}

export function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

export function pair(value: unknown): [number, number] | null {
  const [low, high] = list(value).map(num);
  return low == null || high == null ? null : [low, high];
}

/** The numbers of an object, by name; what is no number is left out. */
export function numbers(value: unknown): Record<string, number> {
  const found: Record<string, number> = {};
  for (const [name, raw] of Object.entries(obj(value))) {
    const known = num(raw);
    if (known !== null) found[name] = known;
  }
  return found;
}
