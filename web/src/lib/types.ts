/**
 * What comes from the server, as the page sees it. The exact shapes are generated into `api.ts` and `events.ts`; the
 * log of a killed or older run may lack fields, so that the store reads event data field by field.
 */
export interface RunEvent {
  /** Line of the log, from 0. */
  seq: number;
  /** Unix seconds. */
  time: number;
  kind: string;
  stage: string | null;
  data: Record<string, unknown>;
}

export interface ServerError {
  what: string;
  where: string;
  fix: string;
}
