/** One run: its ten parts. */
"use client";

import dynamic from "next/dynamic";
import { useSearchParams } from "next/navigation";
import { memo, useEffect, useRef, useState, type ComponentType } from "react";

import { ErrorBox, Part, RunStateLabel, Skeleton } from "@/components/basics";
import { Link } from "@/components/link";
import { Controls } from "@/components/controls";
import type { RunSummary } from "@/lib/api";
import { describe } from "@/lib/describe";
import { figure, integer, moment, percent, seconds, size, times, words } from "@/lib/format";
import { useRun } from "@/lib/live";
import { levelTitle } from "@/lib/stages";
import { readChecks, sameSettled, type RunView, type Settled } from "@/lib/store";
import { resultNumber } from "@/lib/derive";
import { Benchmarks } from "./benchmarks";
import { Current } from "./current";
import { Integration } from "./integration";
import { EventLog } from "./log";
import { Quality } from "./quality";
import { Timeline } from "./timeline";

/** Draws a part again only when what it shows changes: not with every line, step and point of a training. */
function settled<Props extends { view: Settled }>(part: ComponentType<Props>) {
  return memo(part, (before, after) =>
    (Object.keys(after) as (keyof Props)[]).every(
      (key) => before[key] === after[key] || (key === "view" && sameSettled(before.view, after.view)),
    ),
  );
}

const loading = () => <Skeleton className="h-56" />;
const SizeChart = settled(dynamic(() => import("./charts").then((found) => found.SizeChart), { ssr: false, loading }));
const QualityChart = settled(
  dynamic(() => import("./charts").then((found) => found.QualityChart), { ssr: false, loading }),
);
const ExpertRadar = settled(
  dynamic(() => import("./charts").then((found) => found.ExpertRadar), { ssr: false, loading }),
);
const SteadyIntegration = settled(Integration);
const SteadyQuality = settled(Quality);
const SteadyBenchmarks = settled(Benchmarks);
const SteadyHead = settled(Head);
const SteadyVerdict = settled(Verdict);

export function RunPage() {
  const id = useSearchParams().get("id") ?? "";
  if (id === "") {
    return (
      <ErrorBox
        error={{ what: "no run is named", where: "the address of this page", fix: "choose one from the list of runs" }}
      />
    );
  }
  return <Run key={id} id={id} />;
}

function Run({ id }: { id: string }) {
  const { view, summary, loading, error } = useRun(id);
  useEffect(() => {
    if (summary !== null) document.title = `${summary.name} · Phase 8`;
  }, [summary]);
  if (error !== null) return <ErrorBox error={error} />;
  if (loading || summary === null) return <LoadingRun />;
  return (
    <div className="space-y-3 sm:space-y-4" data-run={id} data-next={view.next}>
      <SteadyHead view={view} summary={summary} />
      <Announcer view={view} />
      <SteadyVerdict view={view} summary={summary} />
      <Part id="timeline" title="Progress">
        <Timeline view={view} over={isOver(summary)} />
      </Part>
      <div className="grid gap-3 sm:gap-4 md:grid-cols-2 xl:grid-cols-3">
        <Part id="current" title="Current stage">
          <Current view={view} summary={summary} over={isOver(summary)} />
        </Part>
        <Part id="compression" title="Compression progress" hint="size on disk, logarithmic">
          <SizeChart view={view} />
        </Part>
        <Part id="integration" title="Integration" className="md:col-span-2 xl:col-span-1">
          <SteadyIntegration view={view} />
        </Part>
        <Part
          id="quality"
          title="Quality"
          hint="retention relative to the baseline"
          className="md:col-span-2 xl:col-span-3"
        >
          <SteadyQuality view={view} />
        </Part>
        <Part id="tradeoff" title="Quality against compression" className="md:col-span-2">
          <QualityChart view={view} />
        </Part>
        <Part id="experts" title="Experts" hint="retention, per cent" className="md:col-span-2 xl:col-span-1">
          <ExpertRadar view={view} />
        </Part>
        <Part id="benchmarks" title="Benchmarks" className="md:col-span-2">
          <SteadyBenchmarks view={view} name={summary.name} />
        </Part>
        <Part id="events" title="Event log" className="md:col-span-2 xl:col-span-1">
          <EventLog view={view} />
        </Part>
      </div>
    </div>
  );
}

function isOver(summary: RunSummary): boolean {
  return ["complete", "aborted", "interrupted", "failed", "lost"].includes(summary.state);
}

function Head({ view, summary }: { view: Settled; summary: RunSummary }) {
  const artifacts = summary.stages.filter((stage) => stage.artifact !== null);
  return (
    <div className="flex flex-wrap items-start justify-between gap-x-8 gap-y-3">
      <div className="min-w-0">
        <p className="flex flex-wrap items-center gap-x-3">
          <RunStateLabel state={summary.state} />
          <span className="text-[0.85rem] text-soft">
            {summary.source === "replay" ? "replay" : `from the ${summary.source}`}, {moment(summary.started)}
          </span>
        </p>
        <h1 className="text-xl font-semibold [overflow-wrap:anywhere]">{summary.name}</h1>
        <p className="text-[0.88rem] text-soft">
          {view.compressor || summary.compressor} · {view.model || summary.model}
          {view.parameters !== null && ` · ${integer(view.parameters)} parameters`}
          {view.originalBytes !== null && ` · ${size(view.originalBytes)} in FP32`}
          {view.limits.policy && ` · gate policy ${words(view.limits.policy)}`}
        </p>
        <p className="mt-1 flex flex-wrap gap-x-4 gap-y-1 text-[0.88rem]">
          {artifacts.map((stage) => (
            <Link
              key={stage.stage}
              className="underline underline-offset-2"
              href={`/artifact/?run=${summary.run}&name=${encodeURIComponent(stage.artifact ?? "")}`}
            >
              Artifact {stage.artifact}
            </Link>
          ))}
          {summary.wandb_url?.startsWith("https://") && (
            <a className="underline underline-offset-2" href={summary.wandb_url} target="_blank" rel="noreferrer">
              Weights &amp; Biases
            </a>
          )}
          {summary.replay_of !== null && (
            <Link className="underline underline-offset-2" href={`/run/?id=${summary.replay_of}`}>
              The run itself
            </Link>
          )}
        </p>
      </div>
      <Controls summary={summary} />
    </div>
  );
}

/** What came out, once the run has ended; a decision to take, where it waits for one. */
function Verdict({ view, summary }: { view: Settled; summary: RunSummary }) {
  if (view.failure !== null || summary.state === "failed") {
    const failure = view.failure ?? summary.error ?? { what: "the run ended with an error", where: "", fix: "" };
    return <ErrorBox error={failure} />;
  }
  if (summary.state === "lost") {
    return (
      <ErrorBox
        error={{
          what: "the process of this run is gone",
          where: summary.name,
          fix: "what it had finished is on disk: `python run.py resume=RUN_DIR` goes on from there",
        }}
      />
    );
  }
  if (view.paused !== null && view.paused.reason !== "") {
    return (
      <div role="status" className="rounded-lg border border-fair bg-card p-4">
        <p className="font-semibold">Paused: {view.paused.reason}</p>
        <p className="text-[0.9rem] text-soft">Resume goes on; Abort stops here and keeps what has passed.</p>
      </div>
    );
  }
  const result = view.result;
  if (result === null) return null;
  const success = result.success === true;
  const criteria = readChecks(result.criteria);
  const stopped = view.aborted?.reason || summary.reason;
  return (
    <section aria-label="Result" data-part="result" className="rounded-lg border border-line bg-card p-3.5 sm:p-4">
      <div className="flex flex-wrap items-baseline gap-x-6 gap-y-1">
        <p className="text-[1.05rem] font-semibold">
          <span className={success ? "text-good" : "text-fair"}>{success ? "Success" : "Not a success"}</span>: ends at{" "}
          {levelTitle(String(result.compression_level ?? ""))}
          {stopped && <span className="font-normal text-soft">, stopped: {stopped}</span>}
        </p>
        <dl className="flex flex-wrap gap-x-5 gap-y-1 text-[0.9rem]">
          <Fact name="ratio" value={times(resultNumber(view, "metrics", "total_compression_ratio"))} />
          <Fact name="size" value={size((resultNumber(view, "metrics", "compressed_size_mb") ?? NaN) * 1e6)} />
          <Fact name="bits per weight" value={figure(resultNumber(view, "metrics", "bits_per_weight"))} />
          <Fact name="core kept" value={percent(resultNumber(view, "metrics", "core_retention"))} />
          <Fact name="chance-corrected" value={percent(resultNumber(view, "metrics", "core_retention_corrected"))} />
          <Fact name="took" value={seconds(resultNumber(view, "seconds"))} />
        </dl>
      </div>
      {criteria.length > 0 && (
        <details className="mt-2 text-[0.88rem]">
          <summary className="w-fit font-medium">
            {criteria.filter((check) => check.passed === true).length} of {criteria.length} success criteria hold
          </summary>
          <ul className="mt-2 grid gap-x-6 gap-y-1 md:grid-cols-2">
            {criteria.map((check) => (
              <li key={check.name} data-criterion={check.name} className="flex gap-2">
                <span
                  className={`w-20 shrink-0 font-medium ${check.passed === null ? "text-soft" : check.passed ? "text-good" : "text-poor"}`}
                >
                  {check.passed === null ? "not judged" : check.passed ? "holds" : "fails"}
                </span>
                <span className="min-w-0">
                  {words(check.name)} <span className="num">{figure(check.value)}</span>
                  <span className="text-soft">
                    , threshold {figure(check.threshold)}
                    {check.ceiling !== null && ` to ${figure(check.ceiling)}`}
                    {check.note && ` (${check.note})`}
                  </span>
                </span>
              </li>
            ))}
          </ul>
        </details>
      )}
    </section>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div className="flex gap-1.5" data-fact={name}>
      <dt className="text-soft">{name}</dt>
      <dd className="num font-medium">{value}</dd>
    </div>
  );
}

const TOLD = new Set([
  "stage_start",
  "quality_gate",
  "retry_start",
  "paused",
  "resumed",
  "aborted",
  "failed",
  "phase_complete",
]);

/** Says to a screen reader what happens while the page is open: stages, gates, retries, the end. */
function Announcer({ view }: { view: RunView }) {
  const [said, setSaid] = useState("");
  const from = useRef(view.next);
  useEffect(() => {
    for (let index = view.log.length - 1; index >= 0; index -= 1) {
      const event = view.log[index];
      if (event === undefined || event.seq < from.current) break;
      if (!TOLD.has(event.kind)) continue;
      setSaid(describe(event, view.titles).title);
      break;
    }
    from.current = view.next;
  }, [view]);
  return (
    <p role="status" className="sr-only">
      {said}
    </p>
  );
}

function LoadingRun() {
  return (
    <div className="space-y-4">
      <p role="status" className="text-soft">
        Loading the run
      </p>
      <Skeleton className="h-28" />
      <div className="grid gap-4 md:grid-cols-2 xl:grid-cols-3">
        <Skeleton className="h-64" />
        <Skeleton className="h-64" />
        <Skeleton className="h-64" />
      </div>
    </div>
  );
}
