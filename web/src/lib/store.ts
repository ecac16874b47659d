/**
 * The state of a run as its events tell it. One reducer folds both what a page that opens late is given (the log so
 * far, with most `activity` events left out) and what comes live, so that both end in the same state.
 *
 *     view = fold(EMPTY, events)        // a snapshot
 *     view = fold(view, nextEvents)     // ... and what comes after; events that were seen before change nothing
 *
 * It computes no figure: what it holds stood in an event.
 */
import { Immer } from "immer";

import { list, num, numbers, obj, pair, text, type Json } from "./read";
import type { BenchmarkResult, CheckResult, Limits as RunLimits, QualityGate, RunStart } from "./events";
import { fields, type Fields, type RunEvent } from "./types";

export interface Score {
  task: string;
  role: string;
  standsFor: string;
  experts: string[];
  score: number | null;
  stderr: number | null;
  n: number | null;
  chance: number | null;
  informative: boolean;
  /** Relative to the baseline, with 95 % intervals; null on the baseline itself. */
  retention: number | null;
  retentionInterval: [number, number] | null;
  corrected: number | null;
  correctedInterval: [number, number] | null;
  also: Record<string, number>;
  parts: Record<string, { score: number | null; n: number | null }>;
  note: string;
}

export interface Check {
  name: string;
  value: number | null;
  threshold: number | null;
  ceiling: number | null;
  /** 90 % interval. */
  low: number | null;
  high: number | null;
  /** null: listed, neither passed nor failed. */
  passed: boolean | null;
  note: string;
}

export interface Gate {
  passed: boolean;
  abort: string | null;
  wording: string;
  checks: Check[];
  bitsPerByte: number | null;
  baselineBitsPerByte: number | null;
  text: string;
}

export interface CurvePoint {
  step: number;
  loss: number | null;
  divergence: number | null;
  /** Of the artifact, as training estimates it; null where training leaves the rate alone. */
  bytes: number | null;
  budget: number | null;
  secondsLeft: number | null;
}

export interface Attempt {
  number: number;
  started: number | null;
  ended: number | null;
  /** Seconds of each finished step. */
  steps: Record<string, number>;
  bytes: number | null;
  ratio: number | null;
  bitsPerWeight: number | null;
  /** Bytes by sort of tensor. */
  groups: Record<string, number>;
  results: Record<string, Score>;
  gate: Gate | null;
  recommendation: { action: string; reason: string; adjustments: Json } | null;
  /** What a retry changed. */
  adjustments: Json;
  complete: boolean;
  passed: boolean | null;
  /** false: a retry follows. */
  final: boolean;
  seconds: number | null;
  artifact: string | null;
}

export interface Stage {
  name: string;
  attempts: Attempt[];
}

export interface Activity {
  stage: string | null;
  step: string;
  done: number;
  total: number | null;
  text: string;
  secondsLeft: number | null;
}

/** What the run is held to; null where its log does not say. */
export interface Limits {
  core: Record<string, number>;
  expert: Record<string, number>;
  rule: Record<string, number>;
  cumulative: number;
  benchmark: number;
  finalExpert: number;
  finalRule: number;
  edgeLow: number;
  edgeHigh: number;
  minRatio: number | null;
  targetRatio: number | null;
  maxRetries: number | null;
  policy: string;
  reference: string;
}

export interface RunView {
  /** Line of the log that comes next: events below it were taken in. */
  next: number;
  firstTime: number | null;
  lastTime: number | null;
  model: string;
  compressor: string;
  parameters: number | null;
  originalBytes: number | null;
  planned: string[];
  titles: Record<string, string>;
  limits: Limits;
  /** By name, in the order they began. */
  stages: Record<string, Stage>;
  current: string | null;
  activity: Activity | null;
  /** Training so far, by `curveKey`. Apart from the attempts, which a point of a curve so leaves as they were. */
  curves: Record<string, CurvePoint[]>;
  paused: { time: number; step: string; reason: string } | null;
  aborted: { by: string; reason: string } | null;
  failure: { what: string; where: string; fix: string } | null;
  /** The content of `result.json`. */
  result: Json | null;
  /** All events but those that come by the hundred (`activity`, `training_progress`). */
  log: RunEvent[];
}

/** What changes by the hundred; a part that draws none of it need not be drawn again with it. */
type Frequent = "next" | "lastTime" | "activity" | "curves" | "log";

/** A run without what changes by the hundred. */
export type Settled = Omit<RunView, Frequent>;

export function curveKey(stage: string, attempt: number): string {
  return `${stage} ${attempt}`;
}

/** Whether two views differ at most in what changes by the hundred. */
export function sameSettled(a: Settled, b: Settled): boolean {
  const frequent: Record<Frequent, true> = { next: true, lastTime: true, activity: true, curves: true, log: true };
  return Object.keys(EMPTY).every((key) => key in frequent || a[key as keyof Settled] === b[key as keyof Settled]);
}

/** The specification's thresholds, for a log that names none. */
const SPECIFIED: Limits = {
  core: { seedlm: 0.98, vptq: 0.95, hyper: 0.9 },
  expert: { seedlm: 0.98, vptq: 0.93, hyper: 0.88 },
  rule: { seedlm: 0.65, vptq: 0.65, hyper: 0.6 },
  cumulative: 0.84,
  benchmark: 0.8,
  finalExpert: 0.8,
  finalRule: 0.6,
  edgeLow: 0.7,
  edgeHigh: 0.8,
  minRatio: null,
  targetRatio: null,
  maxRetries: null,
  policy: "",
  reference: "",
};

export const EMPTY: RunView = {
  next: 0,
  firstTime: null,
  lastTime: null,
  model: "",
  compressor: "",
  parameters: null,
  originalBytes: null,
  planned: [],
  titles: {},
  limits: SPECIFIED,
  stages: {},
  current: null,
  activity: null,
  curves: {},
  paused: null,
  aborted: null,
  failure: null,
  result: null,
  log: [],
};

const FREQUENT = new Set(["activity", "training_progress", "log_start"]);
const { produce } = new Immer({ autoFreeze: false });

/** The view after `events`, in their order; those with a line below `view.next` are left out. */
export function fold(view: RunView, events: readonly RunEvent[]): RunView {
  let next = view.next;
  const fresh: RunEvent[] = [];
  for (const event of events) {
    if (event.seq < next) continue;
    fresh.push(event);
    next = event.seq + 1;
  }
  if (fresh.length === 0) return view;
  const listed = fresh.filter((event) => !FREQUENT.has(event.kind));
  const folded = produce(view, (draft) => {
    draft.next = next;
    for (const event of fresh) take(draft, event);
  });
  // Outside of the draft: a log of thousands of lines is joined once a batch and never walked.
  return listed.length === 0 ? folded : { ...folded, log: view.log.concat(listed) };
}

function take(view: RunView, event: RunEvent): void {
  view.firstTime ??= event.time;
  view.lastTime = event.time;
  switch (event.kind) {
    case "run_start":
      runStart(view, fields(event, "run_start"));
      return;
    case "run_resumed":
      view.paused = view.aborted = view.failure = view.result = null;
      return;
    case "paused": {
      const data = fields(event, "paused");
      view.paused = { time: event.time, step: text(data.step), reason: text(data.reason) };
      return;
    }
    case "resumed":
      view.paused = null;
      return;
    case "aborted": {
      const data = fields(event, "aborted");
      view.aborted = { by: text(data.by), reason: text(data.reason) };
      view.paused = null;
      return;
    }
    case "failed": {
      const data = fields(event, "failed");
      view.failure = { what: text(data.what), where: text(data.where), fix: text(data.fix) };
      view.current = view.activity = view.paused = null;
      return;
    }
    case "phase_complete":
      view.result = event.data;
      view.current = view.activity = view.paused = null;
      return;
  }
  if (event.stage !== null) stageEvent(view, event, event.stage);
}

function runStart(view: RunView, data: Fields<RunStart>): void {
  view.model = text(data.model);
  view.compressor = text(data.compressor);
  view.parameters = num(data.parameters);
  view.originalBytes = num(data.original_bytes);
  view.planned = list(data.stages).map(text);
  view.titles = Object.fromEntries(Object.entries(obj(data.titles)).map(([name, title]) => [name, text(title)]));
  const limits: Fields<RunLimits> = obj(data.limits);
  const of = (name: keyof RunLimits, fallback: number) => num(limits[name]) ?? fallback;
  view.limits = {
    core: { ...SPECIFIED.core, ...numbers(limits.core) },
    expert: { ...SPECIFIED.expert, ...numbers(limits.expert) },
    rule: { ...SPECIFIED.rule, ...numbers(limits.rule) },
    cumulative: of("cumulative_retention", SPECIFIED.cumulative),
    benchmark: of("benchmark_retention", SPECIFIED.benchmark),
    finalExpert: of("final_expert", SPECIFIED.finalExpert),
    finalRule: of("final_rule", SPECIFIED.finalRule),
    edgeLow: of("edge_low", SPECIFIED.edgeLow),
    edgeHigh: of("edge_high", SPECIFIED.edgeHigh),
    minRatio: num(limits.min_ratio),
    targetRatio: num(limits.target_ratio),
    maxRetries: num(limits.max_retries),
    policy: text(limits.policy),
    reference: text(limits.reference),
  };
}

function newAttempt(number: number): Attempt {
  return {
    number,
    started: null,
    ended: null,
    steps: {},
    bytes: null,
    ratio: null,
    bitsPerWeight: null,
    groups: {},
    results: {},
    gate: null,
    recommendation: null,
    adjustments: {},
    complete: false,
    passed: null,
    final: true,
    seconds: null,
    artifact: null,
  };
}

/** The attempt that an event speaks of, begun where it is new. */
function attemptOf(view: RunView, name: string, number: number | null): Attempt {
  const stage = (view.stages[name] ??= { name, attempts: [] });
  const last = stage.attempts.at(-1);
  const found = number === null ? last : stage.attempts.find((attempt) => attempt.number === number);
  if (found !== undefined) return found;
  const attempt = newAttempt(number ?? 1);
  stage.attempts.push(attempt);
  return stage.attempts.at(-1) as Attempt;
}

function stageEvent(view: RunView, event: RunEvent, name: string): void {
  if (event.kind === "log") return;
  const attempt = attemptOf(view, name, num(event.data.attempt));
  switch (event.kind) {
    case "stage_start":
      attempt.started = event.time;
      view.current = name;
      view.activity = null;
      break;
    case "activity": {
      const data = fields(event, "activity");
      view.activity = {
        stage: name,
        step: text(data.step),
        done: num(data.done) ?? 0,
        total: num(data.total),
        text: text(data.text),
        secondsLeft: num(data.seconds_left),
      };
      break;
    }
    case "step_complete": {
      const data = fields(event, "step_complete");
      attempt.steps[text(data.step)] = num(data.seconds) ?? 0;
      if (view.activity?.stage === name && view.activity.step === text(data.step)) view.activity = null;
      break;
    }
    case "compression_progress": {
      const data = fields(event, "compression_progress");
      attempt.bytes = num(data.compressed_bytes);
      attempt.ratio = num(data.ratio);
      attempt.bitsPerWeight = num(data.bits_per_weight);
      attempt.groups = numbers(data.groups);
      break;
    }
    case "training_progress": {
      const data = fields(event, "training_progress");
      const step = num(data.step);
      if (step === null) break;
      const curve = (view.curves[curveKey(name, attempt.number)] ??= []);
      // A resumed training begins again at an earlier step.
      while ((curve.at(-1)?.step ?? -1) >= step) curve.pop();
      curve.push({
        step,
        loss: num(data.loss),
        divergence: num(data.divergence),
        bytes: num(data.estimated_bytes),
        budget: num(data.budget_bytes),
        secondsLeft: num(data.seconds_left),
      });
      break;
    }
    case "training_restart":
      view.curves[curveKey(name, attempt.number)] = [];
      break;
    case "benchmark_result": {
      const score = readScore(fields(event, "benchmark_result"));
      attempt.results[score.task] = score;
      break;
    }
    case "quality_gate":
      attempt.gate = readGate(fields(event, "quality_gate"));
      break;
    case "recommendation": {
      const data = fields(event, "recommendation");
      attempt.recommendation = {
        action: text(data.action),
        reason: text(data.reason),
        adjustments: obj(data.adjustments),
      };
      break;
    }
    case "retry_start": {
      const data = fields(event, "retry_start");
      attempt.adjustments = obj(data.adjustments);
      view.current = name;
      break;
    }
    case "stage_complete": {
      const data = fields(event, "stage_complete");
      attempt.complete = true;
      attempt.passed = data.passed === true;
      attempt.final = data.final !== false;
      attempt.ended = event.time;
      attempt.seconds = num(data.seconds);
      attempt.artifact = text(data.artifact) || null;
      if (view.current === name) view.current = null;
      view.activity = null;
      break;
    }
  }
}

function readScore(data: Fields<BenchmarkResult>): Score {
  const parts: Score["parts"] = {};
  for (const [name, part] of Object.entries(obj(data.parts))) {
    parts[name] = { score: num(obj(part).score), n: num(obj(part).n) };
  }
  return {
    task: text(data.task),
    role: text(data.role),
    standsFor: text(data.stands_for),
    experts: list(data.experts).map(text),
    score: num(data.score),
    stderr: num(data.stderr),
    n: num(data.n),
    chance: num(data.chance),
    informative: data.informative !== false,
    retention: num(data.retention),
    retentionInterval: pair(data.retention_interval),
    corrected: num(data.retention_corrected),
    correctedInterval: pair(data.retention_corrected_interval),
    also: numbers(data.also),
    parts,
    note: text(data.note),
  };
}

/** The conditions of a gate, or the success criteria of a result. */
export function readChecks(value: unknown): Check[] {
  return list(value).map((raw) => {
    const check: Fields<CheckResult> = obj(raw);
    return {
      name: text(check.name),
      value: num(check.value),
      threshold: num(check.threshold),
      ceiling: num(check.ceiling),
      low: num(check.low),
      high: num(check.high),
      passed: typeof check.passed === "boolean" ? check.passed : null,
      note: text(check.note),
    };
  });
}

function readGate(data: Fields<QualityGate>): Gate {
  return {
    passed: data.passed === true,
    abort: text(data.abort) || null,
    wording: text(data.wording),
    checks: readChecks(data.checks),
    bitsPerByte: num(data.bits_per_byte),
    baselineBitsPerByte: num(data.baseline_bits_per_byte),
    text: text(data.text),
  };
}
