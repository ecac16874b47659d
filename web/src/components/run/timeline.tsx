/** Part 1: baseline and stages in a row, each with its state, size and ratio. */
"use client";

import { StageStateLabel } from "@/components/basics";
import { coreRetention, lastAttempt, progress, stageNames, stageState, telling } from "@/lib/derive";
import { percent, seconds, size, times } from "@/lib/format";
import { BASELINE, stageColour, stageTitle } from "@/lib/stages";
import type { RunView } from "@/lib/store";

export function Timeline({ view, over }: { view: RunView; over: boolean }) {
  return (
    <ol className="grid gap-2 sm:auto-cols-fr sm:grid-flow-col">
      {stageNames(view).map((name) => (
        <Step key={name} view={view} name={name} over={over} />
      ))}
    </ol>
  );
}

function Step({ view, name, over }: { view: RunView; name: string; over: boolean }) {
  const state = stageState(view, name, over);
  const attempt = state === "complete" ? telling(view.stages[name]) : lastAttempt(view, name);
  const tries = view.stages[name]?.attempts.length ?? 0;
  const now = view.current === name && !over;
  const done = state === "complete" || state === "failed" ? 1 : now ? (progress(view) ?? 0) : 0;
  const retention = name === BASELINE ? null : coreRetention(attempt).value;
  const took = (view.stages[name]?.attempts ?? []).reduce((sum, one) => sum + (one.seconds ?? 0), 0);
  const idle = state === "pending" || state === "skipped" || state === "off";
  return (
    <li
      aria-current={now ? "step" : undefined}
      data-stage={name}
      className="min-w-0 rounded-md bg-raised/60 px-3 pt-0 pb-2.5"
    >
      <div className="keeps-colour -mx-3 mb-2 h-1.5 overflow-hidden rounded-t-md bg-line" aria-hidden="true">
        <div
          className={`h-full origin-left ${now ? "animate-pulse" : ""}`}
          style={{ transform: `scaleX(${now ? Math.max(done, 0.04) : done})`, background: stageColour(name) }}
        />
      </div>
      <div className="flex flex-wrap items-baseline justify-between gap-x-3 sm:block xl:flex">
        <h3 className={`font-semibold ${idle ? "text-soft" : ""}`}>
          {stageTitle(name, view.titles)}
          {tries > 1 && <span className="ml-1.5 text-[0.8rem] font-normal text-soft">attempt {tries}</span>}
        </h3>
        <StageStateLabel state={state} />
      </div>
      <p className="num mt-1 text-[1.05rem] font-semibold" data-figure="size">
        {size(attempt?.bytes ?? (name === BASELINE ? view.originalBytes : null))}
        <span className="ml-2 text-[0.88rem] font-normal text-soft" data-figure="ratio">
          {name === BASELINE ? "FP32" : times(attempt?.ratio)}
        </span>
      </p>
      <p className="num text-[0.82rem] text-soft">
        {retention !== null && `${percent(retention)} kept`}
        {retention !== null && took > 0 && " · "}
        {took > 0 && seconds(took)}
        {retention === null && took === 0 && " "}
      </p>
    </li>
  );
}
