/** What the ten parts draw, picked from a view. Pure functions; the only arithmetic is a mean over an expert's benchmarks. */
import { num, numbers, obj } from "./read";
import { BASELINE, stageOfLevel } from "./stages";
import type { Attempt, Check, RunView, Score, Settled, Stage } from "./store";

const SPECIFIED_STAGES = ["seedlm", "vptq", "hyper"];

export type StageState = "pending" | "running" | "complete" | "failed" | "retrying" | "skipped" | "off";

/** Baseline first, then the stages in order: the planned ones, those switched off in their specified place. */
export function stageNames(view: Settled): string[] {
  const begun = Object.keys(view.stages).filter((name) => name !== BASELINE);
  const extra = [...view.planned, ...begun].filter((name) => !SPECIFIED_STAGES.includes(name));
  return [BASELINE, ...SPECIFIED_STAGES, ...new Set(extra)];
}

export function lastAttempt(view: Settled, stage: string): Attempt | null {
  return view.stages[stage]?.attempts.at(-1) ?? null;
}

/** The attempt of a stage that passed, else its last. */
export function telling(stage: Stage | undefined): Attempt | null {
  return stage?.attempts.findLast((attempt) => attempt.passed === true) ?? stage?.attempts.at(-1) ?? null;
}

export function ended(view: Settled): boolean {
  return view.result !== null || view.failure !== null;
}

/** The state of a stage; `over`: nobody writes the log any more, whatever its last line is. */
export function stageState(view: Settled, stage: string, over = ended(view)): StageState {
  const attempt = lastAttempt(view, stage);
  if (attempt === null) {
    if (stage !== BASELINE && view.planned.length > 0 && !view.planned.includes(stage)) return "off";
    return over ? "skipped" : "pending";
  }
  if (attempt.complete) {
    if (attempt.passed === true) return "complete";
    return attempt.final || over ? "failed" : "retrying";
  }
  if (over) return "failed";
  return attempt.number > 1 ? "retrying" : "running";
}

/** The stage in hand: the current one, else the one that ended last. */
export function stageInHand(view: Settled): string | null {
  return view.current ?? Object.keys(view.stages).at(-1) ?? null;
}

/** Every attempt of the compressing stages, in order. */
export function attempts(view: Settled): { stage: string; attempt: Attempt; several: boolean }[] {
  return Object.values(view.stages)
    .filter((stage) => stage.name !== BASELINE)
    .flatMap((stage) =>
      stage.attempts.map((attempt) => ({ stage: stage.name, attempt, several: stage.attempts.length > 1 })),
    );
}

export function check(attempt: Attempt | null, name: string): Check | null {
  return attempt?.gate?.checks.find((found) => found.name === name) ?? null;
}

/** Mean core retention of an attempt, relative to the baseline: its gate's figure, else the mean of what there is. */
export function coreRetention(attempt: Attempt | null): { value: number | null; final: boolean } {
  const judged = check(attempt, "core_retention_cumulative");
  if (judged !== null && judged.value !== null) return { value: judged.value, final: true };
  const core = Object.values(attempt?.results ?? {}).filter((score) => score.role === "core" && score.informative);
  const values = core.map((score) => score.retention).filter((value) => value !== null);
  const mean = values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
  return { value: mean, final: false };
}

/** The attempt that the page's figures of quality are of: the answer of an ended run, else the latest with scores. */
export function answer(view: Settled): { stage: string; attempt: Attempt } | null {
  const level = view.result === null ? null : stageOfLevel(String(view.result.compression_level ?? ""));
  const kept = level === null ? null : telling(view.stages[level]);
  if (level !== null && kept !== null) return { stage: level, attempt: kept };
  if (view.result !== null) {
    const baseline = lastAttempt(view, BASELINE);
    return baseline === null ? null : { stage: BASELINE, attempt: baseline };
  }
  return latestScored(view);
}

/** The latest attempt that has scores, the baseline where there is no other. */
export function latestScored(view: Settled): { stage: string; attempt: Attempt } | null {
  for (const stage of Object.values(view.stages).reverse()) {
    const attempt = stage.attempts.findLast((found) => Object.keys(found.results).length > 0);
    if (attempt !== undefined) return { stage: stage.name, attempt };
  }
  return null;
}

/** All benchmarks in the order of the baseline. */
export function tasks(view: Settled): Score[] {
  const found: Record<string, Score> = {};
  for (const stage of Object.values(view.stages)) {
    for (const attempt of stage.attempts) {
      for (const score of Object.values(attempt.results)) found[score.task] ??= score;
    }
  }
  return Object.values(found);
}

/** An expert's retention at an attempt: the mean over its informative benchmarks; at the end as `result.json` has it. */
export function expertRetention(view: Settled): { expert: string; byStage: Record<string, number | null> }[] {
  const experts: string[] = [];
  for (const score of Object.values(lastAttempt(view, BASELINE)?.results ?? {})) {
    for (const expert of score.experts) if (!experts.includes(expert)) experts.push(expert);
  }
  const settled = numbers(obj(view.result?.metrics).expert_retention);
  for (const expert of Object.keys(settled)) if (!experts.includes(expert)) experts.push(expert);
  const order = Object.keys(settled);
  if (order.length > 0) experts.sort((a, b) => place(order, a) - place(order, b));
  const level = view.result === null ? null : stageOfLevel(String(view.result.compression_level ?? ""));
  return experts
    .filter((expert) => order.length === 0 || order.includes(expert))
    .map((expert) => {
      const byStage: Record<string, number | null> = {};
      for (const stage of Object.values(view.stages)) {
        if (stage.name === BASELINE) continue;
        const scores = Object.values(telling(stage)?.results ?? {}).filter(
          (score) => score.experts.includes(expert) && score.informative && score.retention !== null,
        );
        byStage[stage.name] =
          scores.length === 0 ? null : scores.reduce((sum, score) => sum + (score.retention ?? 0), 0) / scores.length;
      }
      if (level !== null && settled[expert] !== undefined) byStage[level] = settled[expert];
      return { expert, byStage };
    });
}

function place(order: string[], name: string): number {
  const found = order.indexOf(name);
  return found === -1 ? order.length : found;
}

export function edgeOfChaos(attempt: Attempt | null): { score: Score | null; check: Check | null } {
  const score = Object.values(attempt?.results ?? {}).find((found) => found.task.includes("edge_of_chaos")) ?? null;
  return { score, check: check(attempt, "edge_of_chaos") };
}

export const RULES = ["autonomy", "honesty", "harm", "dignity"];

/** The four rules' scores at an attempt: its gate's, else the parts of the benchmark. */
export function rules(attempt: Attempt | null): { rule: string; value: number | null; check: Check | null }[] {
  const benchmark = Object.values(attempt?.results ?? {}).find((found) => found.task.includes("eudaimonia"));
  return RULES.map((rule) => {
    const judged = check(attempt, `rule/${rule}`);
    return { rule, value: judged?.value ?? benchmark?.parts[rule]?.score ?? null, check: judged };
  });
}

/** How far the stage in hand is, from 0 to 1: its step's share; null where the step does not say. */
export function progress(view: RunView): number | null {
  const activity = view.activity;
  if (activity === null || activity.total === null || activity.total <= 0) return null;
  return Math.min(1, Math.max(0, activity.done / activity.total));
}

export function resultNumber(view: Settled, ...path: string[]): number | null {
  let at: unknown = view.result;
  for (const name of path) at = obj(at)[name];
  return num(at);
}

/** One word for how good a retention is: the specification's colours. */
export function grade(value: number | null, floor: number): "good" | "fair" | "poor" | "none" {
  if (value === null) return "none";
  return value >= 0.95 ? "good" : value >= floor ? "fair" : "poor";
}
