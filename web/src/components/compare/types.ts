import type { RunSummary } from "@/lib/api";

export interface FrontierPoint {
  run: string;
  stage: string;
  attempt: number;
  ratio: number;
  bits_per_weight: number | null;
  bytes: number;
  core_retention: number | null;
  core_retention_interval: [number, number] | null;
  passed: boolean | null;
  on_frontier: boolean;
}

export interface Kept {
  stage: string;
  score: number | null;
  stderr: number | null;
  n: number | null;
  retention: number | null;
  retention_interval: [number, number] | null;
}

export interface Difference {
  task: string;
  a: string;
  b: string;
  difference: number | null;
  interval: [number, number] | null;
  paired: boolean;
}

export interface Comparison {
  runs: RunSummary[];
  frontier: FrontierPoint[];
  benchmarks: { task: string; role: string; values: Record<string, Kept | null> }[];
  differences: Difference[];
  settings: { name: string; values: Record<string, unknown> }[];
}

/** Runs are told apart by a letter; colour stays the stages'. */
export function letter(index: number): string {
  return String.fromCharCode(65 + (index % 26));
}
