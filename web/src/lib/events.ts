// Written by `python -m phase8.watch.server.types`. Do not edit.

export const LOG_VERSION = 2;

/** The first line of every log. */
export interface LogStart {
  version: number;
  program: string;
}

/** What the run is held to: its settings, for whoever draws a threshold. By stage where a mapping. */
export interface Limits {
  /** Least mean retention of the core benchmarks, relative to `reference`. */
  core: Record<string, number>;
  /** Least mean retention of the experts, relative to `reference`. */
  expert: Record<string, number>;
  /** Least score of each eudaimonia rule. */
  rule: Record<string, number>;
  /** Least mean core retention relative to the baseline, at every stage and at the end. */
  cumulative_retention: number;
  /** Below this of the baseline one core benchmark ends the descent. */
  benchmark_retention: number;
  final_expert: number;
  final_rule: number;
  edge_low: number;
  /** Edge of chaos: accuracy has to lie between the two. */
  edge_high: number;
  /** Fewer informative core benchmarks, and held-out text judges. */
  min_informative: number;
  /** FP32 bytes / artifact's bytes, at least, for success; `target_ratio` is what is wished for. */
  min_ratio: number;
  target_ratio: number;
  /** Per generated token. */
  max_latency_ms: number;
  max_retries: number;
  /** `point`, `confident` or `not_worse`. */
  policy: string;
  /** `stage_input` or `baseline`. */
  reference: string;
  /** Largest rise in bits per byte over the baseline, as a fraction, where held-out text judges. */
  perplexity: Record<string, number>;
}

/** A run begins, once per log. */
export interface RunStart {
  run_dir: string;
  compressor: string;
  model: string;
  /** Of its weights and tokenizer. */
  model_hash: string;
  parameters: number;
  /** FP32 bytes of all parameters, tied ones once. */
  original_bytes: number;
  /** The enabled ones, in order. */
  stages: string[];
  /** Names of the stages for people. */
  titles: Record<string, string>;
  seed: number;
  limits: Limits;
  pid: number;
  /** Of the process that writes this log. */
  host: string;
}

/** A further process goes on with a run that ended early; what the last one left half-finished begins anew. */
export interface RunResumed {
  /** 2 for the first resumption. */
  process: number;
  /** Steps that are not done again, as `vptq 1 encode`: stage, attempt, step. */
  finished: string[];
  pid: number;
  host: string;
}

/** A stage's attempt begins; the stage `baseline` measures the input. After `run_resumed` it may come again. */
export interface StageStart {
  attempt: number;
}

/** How far a step is; written at most every 0.1 s. */
export interface Activity {
  /** `load`, `pool`, `allocate`, `encode`, `optimise`, `write`, `evaluate`. */
  step: string;
  done: number;
  total: number | null;
  text: string;
  /** Of this step, at the rate so far; None until there is one. */
  seconds_left: number | null;
}

/** A step has ended well, and what it made is on disk. */
export interface StepComplete {
  step: string;
  seconds: number;
  attempt: number;
  /** Within a byte budget an attempt may encode and train several times. */
  round: number;
  /** Largest resident memory of the process so far. */
  peak_memory_mb: number | null;
}

/** How large an attempt's artifact is, once it is on disk; for `baseline`, the input. */
export interface CompressionProgress {
  attempt: number;
  compressed_bytes: number;
  original_bytes: number;
  /** original_bytes / compressed_bytes. */
  ratio: number;
  bits_per_weight: number;
  /** Bytes per sort of tensor, and `shared`, `header and manifest`, `whole file`. */
  groups: Record<string, number>;
}

/** Settings that each tensor got within a byte budget, encoded and not yet trained. */
export interface Allocated {
  attempt: number;
  /** The setting that limits, such as `vptq.target_ratio`. */
  limit: string;
  budget_bytes: number;
  size_bytes: number;
  estimated_bytes: number;
  estimated_divergence: number | null;
  encodings: number;
  /** By name: the chosen settings, `bits_per_weight`, `relative_error`, `divergence`. */
  tensors: Record<string, Record<string, unknown>>;
}

/** One point of a training's curves, some 50 of them per training, and more often for long ones. */
export interface TrainingProgress {
  attempt: number;
  step: number;
  /** Of the whole training. */
  steps: number;
  /** Nats per token (in the weight phase: squared relative error of the weights). */
  loss: number | null;
  /** On held-out text; None where this point did not measure it. */
  divergence: number | null;
  /** Of the artifact, as training estimates it now; None where training leaves the rate alone. */
  estimated_bytes: number | null;
  budget_bytes: number | null;
  seconds_left: number | null;
  /** The Grokfast variant in use. */
  filter: string;
}

/** A training made held-out text worse and begins again without the gradient filter. */
export interface TrainingRestart {
  attempt: number;
  /** The variant that did harm. */
  filter: string;
  held_out_before: number | null;
  held_out_after: number | null;
  reason: string;
}

/** What a training brought. */
export interface TrainingComplete {
  attempt: number;
  /** Done; fewer than planned where the loss was no number any more. */
  steps: number;
  /** The last. */
  loss: number | null;
  held_out_before: number | null;
  /** Divergence from the original on text that no step saw, of the decoded weights. */
  held_out_after: number | null;
  /** False: the untrained weights stand, since training did not lower it. */
  kept: boolean;
  diverged: boolean;
  /** The Grokfast variant, or `off`. */
  filter: string;
  seconds: number;
}

/** A benchmark's items of one subject or rule. */
export interface Part {
  score: number;
  n: number;
}

/** One benchmark's score on one model; retentions are relative to the baseline, intervals 95 %. */
export interface BenchmarkResult {
  task: string;
  /** `core`, `expert` or `integration`. */
  role: string;
  /** The published benchmark after which it is modelled. */
  stands_for: string;
  /** The experts that it judges. */
  experts: string[];
  attempt: number;
  score: number;
  stderr: number | null;
  /** Items. */
  n: number;
  /** What a guess scores. */
  chance: number;
  /** The baseline is above chance by two standard errors. */
  informative: boolean;
  retention: number | null;
  retention_interval: [number | null, number | null] | null;
  /** (score - chance) / (baseline - chance). */
  retention_corrected: number | null;
  retention_corrected_interval: [number | null, number | null] | null;
  /** Further metrics by lm-eval's names. */
  also: Record<string, number>;
  /** By subject or rule, where the benchmark has several. */
  parts: Record<string, Part>;
  note: string;
}

/** One condition of a gate, or one success criterion, with the figure behind it. */
export interface CheckResult {
  /** `core_retention`, `core_retention_cumulative`, `expert_retention`, `benchmark/TASK`, `rule/RULE`, `edge_of_chaos`, `perplexity`, ... */
  name: string;
  value: number | null;
  /** The least value that passes; with `ceiling` the band that does. */
  threshold: number;
  /** None: listed, neither passed nor failed; `note` says why. */
  passed: boolean | null;
  note: string;
  ceiling: number | null;
  low: number | null;
  /** 90 % interval. */
  high: number | null;
  /** Chance of a figure as far beyond the threshold if the true one just reached it. */
  p: number | null;
}

/** The verdict on one attempt. */
export interface QualityGate {
  attempt: number;
  passed: boolean;
  /** Why the descent ends here, or None. */
  abort: string | null;
  checks: CheckResult[];
  /** What the verdict is worth, in a sentence. */
  wording: string;
  bits_per_byte: number | null;
  baseline_bits_per_byte: number | null;
  /** Name of the held-out text that `bits_per_byte` is of. */
  text: string;
}

/** What would mend a failed gate. */
export interface Recommended {
  /** The one that failed. */
  attempt: number;
  action: string;
  /** Dotted names of settings with their new values; empty where nothing is left to change. */
  adjustments: Record<string, unknown>;
  reason: string;
}

/** A stage is tried again with the recommendation. */
export interface RetryStart {
  /** The one that begins. */
  attempt: number;
  action: string;
  adjustments: Record<string, unknown>;
  reason: string;
}

/** An attempt has ended; of `baseline`, the measurement. */
export interface StageComplete {
  attempt: number;
  passed: boolean;
  seconds: number;
  /** Directory. */
  artifact: string | null;
  /** False: a retry follows. */
  final: boolean;
  bits_per_byte: number | null;
  /** Name of the held-out text. */
  text: string;
  peak_memory_mb: number | null;
}

/** A sentence for people; nothing that a program needs stands here alone. */
export interface Log {
  /** `debug`, `info`, `warning` or `error`. */
  level: string;
  text: string;
}

/** The run holds at a safe point, on somebody's wish. */
export interface Paused {
  step: string;
  reason: string;
}

/** A pause has ended. */
export interface Resumed {
  step: string;
  paused_s: number;
}

/** The run ends early; the last artifact that passed its gate stays the answer, `resume=` can go on later. */
export interface Aborted {
  /** `control` (the control file), `signal` (Ctrl-C, SIGTERM, SIGHUP) or `study` (a pruned trial). */
  by: string;
  reason: string;
  step: string;
}

/** An error ended the process: no `phase_complete` follows. `resume=` can go on once it is mended. */
export interface Failed {
  /** The error's class. */
  error: string;
  what: string;
  where: string;
  fix: string;
}

/** The run has ended; the fields are those of `result.json`. */
export interface PhaseComplete {
  success: boolean;
  /** `hypercompression`, `vptq`, `seedlm` or `phase7_fallback`. */
  compression_level: string;
  variant: string;
  seed: number;
  artifact: string | null;
  metrics: Record<string, unknown>;
  criteria: CheckResult[];
  techniques_applied: string[];
  production_ready: boolean;
  inference_latency_estimate_ms: number | null;
  inference_latency_measured_ms: number | null;
  recommended_hardware: string;
  stages: Record<string, unknown>;
  model: Record<string, unknown>;
  /** Ended early: by a signal, by the control file or by a study. */
  interrupted: boolean;
  /** Why, where it ended early. */
  stopped: string;
  /** Of all processes that worked on it, pauses included. */
  seconds: number;
  peak_memory_mb: number;
}

/** The data of each kind of event. */
export interface EventData {
  log_start: LogStart;
  run_start: RunStart;
  run_resumed: RunResumed;
  stage_start: StageStart;
  activity: Activity;
  step_complete: StepComplete;
  compression_progress: CompressionProgress;
  allocation: Allocated;
  training_progress: TrainingProgress;
  training_restart: TrainingRestart;
  training_complete: TrainingComplete;
  benchmark_result: BenchmarkResult;
  quality_gate: QualityGate;
  recommendation: Recommended;
  retry_start: RetryStart;
  stage_complete: StageComplete;
  log: Log;
  paused: Paused;
  resumed: Resumed;
  aborted: Aborted;
  failed: Failed;
  phase_complete: PhaseComplete;
}

export type Kind = keyof EventData;

/** One line of a run's log; `seq` is its number. */
export type AnyEvent = {
  [K in Kind]: { seq: number; time: number; kind: K; stage: string | null; data: EventData[K] };
}[Kind];
