// Written by `python -m phase8.watch.server.types`. Do not edit.

import type { AnyEvent } from "./events";

export type RunState =
  | "starting"
  | "running"
  | "pausing"
  | "paused"
  | "aborting"
  | "complete"
  | "aborted"
  | "interrupted"
  | "failed"
  | "lost";

export type StageState =
  | "pending"
  | "running"
  | "retrying"
  | "passed"
  | "failed"
  | "skipped";

/** What is wrong, where, and how to mend it. */
export interface ErrorText {
  what: string;
  where: string;
  fix: string;
}

/** The body of every answer with a status of 400 or more. */
export interface ErrorBody {
  error: ErrorText;
}

export interface Health {
  ok: boolean;
  version: string;
  token_required: boolean;
}

/** The attempt of a stage that counts: the one that passed, else the last. */
export interface StageSummary {
  stage: string;
  title: string;
  state: StageState;
  attempts: number;
  bytes: number | null;
  ratio: number | null;
  bits_per_weight: number | null;
  core_retention: number | null;
  seconds: number | null;
  /** Its name for the artifact calls. */
  artifact: string | null;
}

/** A run in a line of the list. */
export interface RunSummary {
  run: string;
  name: string;
  /** The multirun that it belongs to. */
  study: string | null;
  source: "command line" | "dashboard" | "replay";
  state: RunState;
  model: string;
  compressor: string;
  started: number | null;
  updated: number | null;
  seconds: number | null;
  events: number;
  /** The stage in hand. */
  current: string | null;
  /** Of the step in hand, 0 to 1. */
  progress: number | null;
  original_bytes: number | null;
  /** Of the answer: the last artifact that passed. */
  compressed_bytes: number | null;
  ratio: number | null;
  core_retention: number | null;
  core_retention_interval: [number | null, number | null] | null;
  level: string | null;
  success: boolean | null;
  stages: StageSummary[];
  /** Pause, resume and abort may be asked for. */
  steerable: boolean;
  error: ErrorText | null;
  /** Why it is paused or was aborted. */
  reason: string | null;
  wandb_url: string | null;
  replay_of: string | null;
  speed: number | null;
}

/** One line of a run's log; a kind that this page does not know has data of any form. */
export type RunEvent = AnyEvent;

export interface Events {
  run: string;
  events: RunEvent[];
  /** `after` of the call that goes on from here. */
  next: number;
}

export interface RunList {
  runs: RunSummary[];
  total: number;
}

export interface ActivityNow {
  stage: string | null;
  step: string;
  done: number | null;
  total: number | null;
  text: string;
}

export interface LogLine {
  time: number;
  level: string;
  stage: string | null;
  text: string;
}

export interface Status {
  summary: RunSummary;
  activity: ActivityNow | null;
  elapsed: number | null;
  log: LogLine[];
  next: number;
}

/** A run's settings by dotted name; what looks like a secret is left out. */
export interface SettingsOf {
  settings: Record<string, unknown>;
}

export interface Measured {
  score: number | null;
  stderr: number | null;
  also: Record<string, number>;
}

export interface StageMeasured {
  score: number | null;
  stderr: number | null;
  also: Record<string, number>;
  attempt: number;
  n: number | null;
  retention: number | null;
  retention_interval: [number | null, number | null] | null;
  retention_corrected: number | null;
  retention_corrected_interval: [number | null, number | null] | null;
}

export interface BenchmarkRow {
  task: string;
  role: string;
  n: number | null;
  chance: number | null;
  informative: boolean;
  baseline: Measured | null;
  stages: Record<string, StageMeasured>;
}

export interface Benchmarks {
  stages: string[];
  benchmarks: BenchmarkRow[];
}

export interface RecommendationOf {
  attempt: number;
  action: string;
  adjustments: Record<string, unknown>;
  reason: string;
}

export interface Recommendations {
  stage: string;
  recommendations: RecommendationOf[];
}

/** A setting that `start` accepts. */
export interface Setting {
  name: string;
  type: "bool" | "int" | "float" | "text" | "choice";
  default: boolean | number | string | null;
  choices: string[] | null;
  low: number | null;
  high: number | null;
  nullable: boolean;
  help: string;
  group: string;
}

export interface Startable {
  /** Whether runs can be started: the directory that the server works in holds run.py. */
  available: boolean;
  variants: string[];
  models: string[];
  experiments: string[];
  settings: Setting[];
}

export interface Start {
  variant?: string;
  model?: string;
  experiment?: string | null;
  settings?: Record<string, boolean | number | string | null>;
}

export interface Nothing {
}

export interface Abort {
  reason: string;
}

export interface Started {
  job: string;
  summary: RunSummary;
}

export interface StartReplay {
  speed?: number;
  /** Gaps between events are shortened to this, before the speed divides them. */
  longest_gap_s?: number;
}

export interface ChangeReplay {
  speed?: number | null;
  /** Share of the events that are told. */
  position?: number | null;
}

export interface FrontierPoint {
  run: string;
  stage: string;
  attempt: number;
  ratio: number;
  bits_per_weight: number | null;
  bytes: number | null;
  core_retention: number;
  core_retention_interval: [number | null, number | null] | null;
  /** The least core retention that the run's settings allow. */
  threshold: number | null;
  passed: boolean;
  /** No other point has both a higher ratio and a higher retention. */
  on_frontier: boolean;
}

export interface Compared {
  stage: string;
  score: number | null;
  stderr: number | null;
  n: number | null;
  retention: number | null;
  retention_interval: [number | null, number | null] | null;
}

export interface ComparedTask {
  task: string;
  role: string;
  values: Record<string, Compared | null>;
}

/** Of the retentions of two runs on one benchmark: b - a, with its 95 % interval. */
export interface Difference {
  task: string;
  a: string;
  b: string;
  difference: number;
  interval: [number | null, number | null] | null;
  /** Item by item. False: the items of the two runs are not the same or not on disk. */
  paired: boolean;
}

export interface DifferentSetting {
  name: string;
  values: Record<string, unknown>;
}

export interface Comparison {
  runs: RunSummary[];
  frontier: FrontierPoint[];
  benchmarks: ComparedTask[];
  differences: Difference[];
  settings: DifferentSetting[];
}

export interface ArtifactLine {
  name: string;
  stage: string;
  attempt: number;
  passed: boolean | null;
  bytes: number | null;
  ratio: number | null;
  bits_per_weight: number | null;
}

export interface Artifacts {
  artifacts: ArtifactLine[];
}

/** A part of the artifact; the children's bytes add up to the parent's. */
export interface Node {
  name: string;
  bytes: number;
  children: Node[];
}

export interface BesideFile {
  name: string;
  bytes: number;
}

export interface TensorLine {
  name: string;
  shape: number[];
  codec: string;
  group: number;
  settings: Record<string, unknown>;
  packed_bits_per_weight: number;
}

export interface ArtifactDetail {
  name: string;
  stage: string;
  parameters: number;
  bytes: number;
  ratio: number;
  ratio_vs_16bit: number;
  bits_per_weight: number;
  tree: Node;
  /** Files that are not counted (tokenizer). */
  beside: BesideFile[];
  tensors: TensorLine[];
}

export interface Talk {
  prompt: string;
  tokens?: number;
  temperature?: number;
  seed?: number;
}
