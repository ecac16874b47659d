/** Payloads of the server's REST calls and sockets. */
export type RunState =
  | "starting" | "running" | "pausing" | "paused" | "aborting" | "complete" | "aborted" | "interrupted" | "failed" | "lost";
export type StageState = "pending" | "running" | "retrying" | "passed" | "failed" | "skipped";
export interface StageSummary {
  stage: string; state: StageState; attempts: number; bytes: number | null; ratio: number | null;
  bits_per_weight: number | null; core_retention: number | null; seconds: number | null; artifact: string | null;
}
export interface RunSummary {
  run: string; name: string; study: string | null; source: "command line" | "dashboard" | "replay"; state: RunState;
  model: string; compressor: string; started: number | null; updated: number | null; seconds: number | null;
  events: number; current: string | null; progress: number | null; original_bytes: number | null;
  compressed_bytes: number | null; ratio: number | null; core_retention: number | null;
  core_retention_interval: [number, number] | null; level: string | null; success: boolean | null;
  stages: StageSummary[]; steerable: boolean; error: string | null; reason: string | null; wandb_url: string | null;
  replay_of: string | null; speed: number | null;
}
