/**
 * Events as the page takes them. The exact fields of each kind are generated into `events.ts`; but the log of a killed
 * or later run may lack some, so that values are read one by one: `fields` lets only known names through, as unknown.
 */
import type { EventData, Kind } from "./events";

export interface RunEvent {
  /** Line of the log, from 0. */
  seq: number;
  /** Unix seconds. */
  time: number;
  kind: string;
  stage: string | null;
  data: Record<string, unknown>;
}

export type Fields<T> = { readonly [F in keyof T]?: unknown };

/** The data of an event of this kind: its fields by name, each to be read with `num`, `text` and so on. */
export function fields<K extends Kind>(event: RunEvent, _kind: K): Fields<EventData[K]> {
  return event.data as Fields<EventData[K]>;
}
