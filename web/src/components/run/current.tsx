/** Part 2: what is being done now: percent, elapsed time, activity, the last five lines. */
"use client";

import { useEffect, useState } from "react";

import { StageName } from "@/components/basics";
import { describe } from "@/lib/describe";
import { ended, lastAttempt, progress } from "@/lib/derive";
import { clock, figure, seconds, size, words } from "@/lib/format";
import { num } from "@/lib/read";
import { stageColour, stageTitle } from "@/lib/stages";
import type { RunSummary } from "@/lib/api";
import { thinned, type Point } from "@/lib/thin";
import { curveKey, type CurvePoint, type RunView } from "@/lib/store";

/** Seconds since the run began: on while it runs, as its log says once it ended. */
export function useElapsed(view: RunView, summary: RunSummary | null): number | null {
  const ticking = summary?.state === "running" && summary.source !== "replay" && !ended(view);
  const [now, setNow] = useState<number | null>(null);
  useEffect(() => {
    if (!ticking) return;
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000);
    return () => clearInterval(timer);
  }, [ticking]);
  const whole = num(view.result?.seconds);
  if (whole !== null) return whole;
  if (view.firstTime === null || view.lastTime === null) return null;
  const until = ticking && now !== null ? Math.max(view.lastTime, now) : view.lastTime;
  return until - view.firstTime;
}

export function Current({ view, summary, over }: { view: RunView; summary: RunSummary | null; over: boolean }) {
  const elapsed = useElapsed(view, summary);
  const { activity } = view;
  const share = progress(view);
  const stage = over ? null : (view.current ?? activity?.stage ?? null);
  const percent = share === null ? null : Math.round(100 * share);
  const attempt = stage === null ? null : lastAttempt(view, stage);
  const curve =
    stage === null || attempt === null || attempt.complete ? [] : (view.curves[curveKey(stage, attempt.number)] ?? []);
  return (
    <div className="flex flex-1 flex-col gap-3">
      <div className="flex flex-wrap items-baseline justify-between gap-x-4">
        <p className="font-semibold" data-figure="stage">
          {stage !== null ? (
            <>
              <StageName stage={stage} titles={view.titles} />
              {attempt !== null && attempt.number > 1 && (
                <span className="font-normal text-soft">, attempt {attempt.number}</span>
              )}
            </>
          ) : (
            standing(view, summary)
          )}
        </p>
        <p className="num text-soft">
          <span className="sr-only">Elapsed: </span>
          <span data-figure="elapsed">{seconds(elapsed)}</span>
        </p>
      </div>
      {stage !== null && (
        <div>
          <div
            role="progressbar"
            aria-label={activity === null ? "Current step" : words(activity.step)}
            aria-valuemin={0}
            aria-valuemax={100}
            {...(percent === null ? {} : { "aria-valuenow": percent })}
            className="keeps-colour h-2.5 overflow-hidden rounded-full bg-raised"
          >
            <div
              className="h-full origin-left"
              style={{ transform: `scaleX(${(percent ?? 0) / 100})`, background: stageColour(stage) }}
            />
          </div>
          <p className="mt-1.5 flex flex-wrap justify-between gap-x-4 text-[0.88rem]">
            <span data-figure="activity">
              {activity === null
                ? "Between two steps"
                : sentence(activity.step, activity.text, activity.done, activity.total)}
            </span>
            <span className="num text-soft">
              {percent !== null && `${percent} %`}
              {activity?.secondsLeft != null && ` · ${seconds(activity.secondsLeft)} left`}
            </span>
          </p>
        </div>
      )}
      {curve.length > 1 && <Curve curve={curve} stage={stage ?? ""} />}
      {stage === null && <StageTimes view={view} />}
      <div className="mt-auto">
        <h3 className="mb-1 text-[0.8rem] font-medium text-soft">Last five lines</h3>
        <ol className="space-y-0.5 text-[0.82rem]" data-figure="log">
          {view.log.slice(-5).map((event) => (
            <li key={event.seq} className="flex gap-2">
              <time className="num shrink-0 text-soft">{clock(event.time)}</time>
              <span className="min-w-0 truncate" title={describe(event, view.titles).title}>
                {describe(event, view.titles).title}
              </span>
            </li>
          ))}
          {view.log.length === 0 && <li className="text-soft">Nothing yet</li>}
        </ol>
      </div>
    </div>
  );
}

function standing(view: RunView, summary: RunSummary | null): string {
  if (view.failure !== null) return "Ended by an error";
  if (view.result !== null) return "Ended";
  if (summary?.state === "lost")
    return view.current === null ? "Stopped" : `Stopped in ${stageTitle(view.current, view.titles)}`;
  return summary === null || view.lastTime === null ? "Not begun" : "Between two stages";
}

function sentence(step: string, text: string, done: number, total: number | null): string {
  const count = total === null ? figure(done) : `${figure(done)} of ${figure(total)}`;
  return text === "" ? `${words(step)}, ${count}` : `${words(step)}: ${text}`;
}

/** How long each stage took, all its attempts together. */
function StageTimes({ view }: { view: RunView }) {
  const times = Object.values(view.stages)
    .map((stage) => ({ name: stage.name, took: stage.attempts.reduce((sum, one) => sum + (one.seconds ?? 0), 0) }))
    .filter((stage) => stage.took > 0);
  const longest = Math.max(...times.map((stage) => stage.took));
  return (
    <dl className="grid grid-cols-[auto_1fr_auto] items-center gap-x-3 gap-y-1 text-[0.85rem]">
      {times.map(({ name, took }) => (
        <div key={name} className="contents">
          <dt>
            <StageName stage={name} titles={view.titles} />
          </dt>
          <dd className="contents">
            <span
              className="keeps-colour h-2 rounded-full"
              style={{ width: `${(100 * took) / longest}%`, background: stageColour(name) }}
              aria-hidden="true"
            />
            <span className="num text-right">{seconds(took)}</span>
          </dd>
        </div>
      ))}
    </dl>
  );
}

/** The training so far: its loss and, where it trains within a byte budget, the size that falls to it. */
function Curve({ curve, stage }: { curve: readonly CurvePoint[]; stage: string }) {
  const loss = curve.filter((point) => point.loss !== null && point.loss > 0);
  const sized = curve.filter((point) => point.bytes !== null && point.bytes > 0);
  const last = curve.at(-1);
  const budget = last?.budget ?? null;
  return (
    <div className="grid grid-cols-[auto_minmax(0,1fr)_auto] items-center gap-x-3 gap-y-1 text-[0.82rem]">
      {loss.length > 1 && (
        <Spark
          name="Loss"
          points={thinned(loss.map((point) => [point.step, Math.log(point.loss as number)]))}
          colour={stageColour(stage)}
          figures={figure(loss.at(-1)?.loss)}
        />
      )}
      {sized.length > 1 && (
        <Spark
          name="Size"
          points={thinned(sized.map((point) => [point.step, Math.log(point.bytes as number)]))}
          goal={budget === null ? null : Math.log(budget)}
          colour={stageColour(stage)}
          figures={size(sized.at(-1)?.bytes) + (budget === null ? "" : ` of ${size(budget)}`)}
        />
      )}
      {last?.secondsLeft != null && (
        <p className="num col-span-3 text-right text-soft" data-figure="training-left">
          {seconds(last.secondsLeft)} of training left
        </p>
      )}
    </div>
  );
}

/** A line without axes, its name before it and its last figure after it. */
function Spark({
  name,
  points,
  goal = null,
  colour,
  figures,
}: {
  name: string;
  points: readonly Point[];
  goal?: number | null;
  colour: string;
  figures: string;
}) {
  const xs = points.map(([x]) => x);
  const ys = [...points.map(([, y]) => y), ...(goal === null ? [] : [goal])];
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const height = (y: number) => (28 - (26 * (y - y0)) / (y1 - y0 || 1)).toFixed(2);
  const place = ([x, y]: Point) => `${((100 * (x - x0)) / (x1 - x0 || 1)).toFixed(2)},${height(y)}`;
  return (
    <>
      <span className="text-soft">{name}</span>
      <svg viewBox="0 0 100 30" preserveAspectRatio="none" className="h-8 w-full min-w-0" aria-hidden="true">
        {goal !== null && (
          <line
            x1={0}
            x2={100}
            y1={height(goal)}
            y2={height(goal)}
            stroke="var(--soft)"
            strokeWidth={1}
            strokeDasharray="4 4"
            vectorEffect="non-scaling-stroke"
          />
        )}
        <polyline
          points={points.map(place).join(" ")}
          fill="none"
          stroke={colour}
          strokeWidth={1.5}
          vectorEffect="non-scaling-stroke"
        />
      </svg>
      <span className="num text-right" data-figure={`training-${name.toLowerCase()}`}>
        {figures}
      </span>
    </>
  );
}
