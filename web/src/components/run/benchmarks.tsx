/** Part 5: every benchmark at every stage; sortable, rows open to their parts, saved as CSV. */
"use client";

import { Fragment, useState } from "react";

import { Button, Empty, StageName } from "@/components/basics";
import { Icon } from "@/components/icons";
import { answer, lastAttempt, tasks, telling } from "@/lib/derive";
import { benchmark, fixed, percent, words } from "@/lib/format";
import { save } from "@/lib/rest";
import { BASELINE } from "@/lib/stages";
import type { Score, Settled } from "@/lib/store";

interface Row {
  task: string;
  name: string;
  role: string;
  baseline: Score | null;
  /** By stage: the attempt that passed, else the last. */
  stages: Record<string, Score | null>;
  /** Of the answer of an ended run, else of the latest stage that has one. */
  retention: number | null;
  status: string;
  tone: string;
}

type Key = "order" | "name" | "baseline" | "retention" | "status" | `stage:${string}`;

function rowsOf(view: Settled, stages: string[]): Row[] {
  const baseline = lastAttempt(view, BASELINE);
  const ends = view.result === null ? null : (answer(view)?.stage ?? null);
  return tasks(view).map((first) => {
    const before = baseline?.results[first.task] ?? null;
    const scores: Record<string, Score | null> = {};
    for (const stage of stages) scores[stage] = telling(view.stages[stage])?.results[first.task] ?? null;
    const last = ends !== null ? scores[ends] : stages.map((stage) => scores[stage]).findLast((score) => score != null);
    const retention = last?.retention ?? null;
    const limit = view.limits.benchmark;
    const informative = before?.informative ?? first.informative;
    const [status, tone] =
      first.role === "integration"
        ? ["See Integration", "text-soft"]
        : !informative
          ? ["Uninformative", "text-soft"]
          : retention === null
            ? ["Baseline only", "text-soft"]
            : retention >= 0.95
              ? ["Kept", "text-good"]
              : retention >= limit
                ? ["Reduced", "text-fair"]
                : ["Lost", "text-poor"];
    return {
      task: first.task,
      name: benchmark(first.task),
      role: first.role,
      baseline: before,
      stages: scores,
      retention,
      status: status as string,
      tone: tone as string,
    };
  });
}

function valueOf(row: Row, key: Key): number | string {
  if (key === "name") return row.name.toLowerCase();
  if (key === "status") return row.status;
  if (key === "baseline") return row.baseline?.score ?? -1;
  if (key === "retention") return row.retention ?? -1;
  return row.stages[key.slice(6)]?.score ?? -1;
}

export function Benchmarks({ view, name }: { view: Settled; name: string }) {
  const [sort, setSort] = useState<{ key: Key; down: boolean }>({ key: "order", down: false });
  const [open, setOpen] = useState<ReadonlySet<string>>(new Set());
  const stages = Object.keys(view.stages).filter(
    (stage) => stage !== BASELINE && Object.keys(telling(view.stages[stage])?.results ?? {}).length > 0,
  );
  const rows = rowsOf(view, stages);
  if (rows.length === 0) return <Empty>The table fills as benchmarks are measured</Empty>;
  if (sort.key !== "order") {
    rows.sort((a, b) => {
      const [x, y] = [valueOf(a, sort.key), valueOf(b, sort.key)];
      return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1);
    });
  }
  const toggle = (task: string) => {
    const next = new Set(open);
    if (!next.delete(task)) next.add(task);
    setOpen(next);
  };
  const heading = (key: Key, children: React.ReactNode, right = false) => {
    const active = sort.key === key;
    return (
      <th
        scope="col"
        aria-sort={active ? (sort.down ? "descending" : "ascending") : "none"}
        className={`cell p-0! font-medium ${right ? "text-right" : "text-left"}`}
      >
        <button
          type="button"
          onClick={() =>
            setSort(active ? (sort.down ? { key: "order", down: false } : { key, down: true }) : { key, down: false })
          }
          className={`inline-flex min-h-8 w-full items-center gap-1 px-2.5 whitespace-nowrap text-soft hover:text-ink ${right ? "justify-end" : ""}`}
        >
          {children}
          <span aria-hidden="true" className={`text-[0.7rem] ${active ? "text-ink" : "invisible"}`}>
            {sort.down ? "▼" : "▲"}
          </span>
        </button>
      </th>
    );
  };
  return (
    <>
      <div
        className="-mx-1 overflow-x-auto px-1 pb-1"
        tabIndex={0}
        role="region"
        aria-label="Benchmark table, scrolls sideways"
      >
        <table className="w-full border-separate border-spacing-0 text-[0.88rem]">
          <caption className="sr-only">
            Score of every benchmark at the baseline and at every stage, with the retention of the run's answer, or of
            the latest stage while it runs
          </caption>
          <thead>
            <tr>
              {heading("name", "Benchmark")}
              {heading("baseline", <StageName stage={BASELINE} />, true)}
              {stages.map((stage) => (
                <Fragment key={stage}>
                  {heading(`stage:${stage}`, <StageName stage={stage} titles={view.titles} />, true)}
                </Fragment>
              ))}
              {heading("retention", "Retention", true)}
              {heading("status", "Status")}
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => {
              const parts = partsOf(row, stages);
              const shown = open.has(row.task);
              return (
                <Fragment key={row.task}>
                  <tr data-task={row.task}>
                    <th scope="row" className="cell text-left font-medium whitespace-nowrap">
                      {parts.length > 0 ? (
                        <button
                          type="button"
                          aria-expanded={shown}
                          onClick={() => toggle(row.task)}
                          className="inline-flex items-center gap-1 hover:underline"
                        >
                          <Icon name="right" className={`size-3 transition-transform ${shown ? "rotate-90" : ""}`} />
                          {row.name}
                        </button>
                      ) : (
                        <span className="pl-4">{row.name}</span>
                      )}
                      {row.role !== "core" && (
                        <span className="ml-1.5 text-[0.78rem] font-normal text-soft">{row.role}</span>
                      )}
                    </th>
                    <td className="cell num text-right" data-stage={BASELINE}>
                      <ScoreCell score={row.baseline} />
                    </td>
                    {stages.map((stage) => (
                      <td key={stage} className="cell num text-right" data-stage={stage}>
                        <ScoreCell score={row.stages[stage] ?? null} />
                      </td>
                    ))}
                    <td className="cell num text-right font-medium" data-figure="retention">
                      {percent(row.retention)}
                    </td>
                    <td className={`cell font-medium ${row.tone}`}>{row.status}</td>
                  </tr>
                  {shown &&
                    parts.map((part) => (
                      <tr key={part.name} className="text-soft">
                        <th scope="row" className="cell pl-8! text-left font-normal">
                          {words(part.name)}
                          {part.n !== null && <span className="num"> · {part.n} items</span>}
                        </th>
                        {part.values.map((value, index) => (
                          <td key={index} className="cell num text-right">
                            {percent(value)}
                          </td>
                        ))}
                        <td className="cell num text-right">{percent(part.retention)}</td>
                        <td className="cell" />
                      </tr>
                    ))}
                </Fragment>
              );
            })}
          </tbody>
        </table>
      </div>
      <div className="mt-2 flex flex-wrap items-center gap-3">
        <Button
          icon="down"
          onClick={() =>
            save(new Blob([csv(rows, stages)], { type: "text/csv" }), `${name.replaceAll("/", "_")}_benchmarks.csv`)
          }
        >
          Save table as CSV
        </Button>
        <p className="text-[0.82rem] text-soft">
          Scores ± standard error. Retention: {view.result === null ? "the latest stage" : "what the run ends with"},
          relative to the baseline.
        </p>
      </div>
    </>
  );
}

function ScoreCell({ score }: { score: Score | null }) {
  return (
    <>
      {percent(score?.score)}
      {score?.stderr != null && <span className="ml-1 text-[0.78rem] text-soft">±{fixed(100 * score.stderr, 1)}</span>}
    </>
  );
}

interface PartRow {
  name: string;
  n: number | null;
  values: (number | null)[];
  retention: number | null;
}

/** Parts of a benchmark (subjects, rules) and its further metrics, a row each. */
function partsOf(row: Row, stages: string[]): PartRow[] {
  const scores = [row.baseline, ...stages.map((stage) => row.stages[stage] ?? null)];
  const names = new Set(scores.flatMap((score) => Object.keys(score?.parts ?? {})));
  const also = new Set(scores.flatMap((score) => Object.keys(score?.also ?? {})));
  const built = (name: string, n: number | null, values: (number | null)[]): PartRow => {
    const before = values[0] ?? null;
    const after = values.slice(1).findLast((value) => value !== null) ?? null;
    return { name, n, values, retention: before !== null && after !== null && before > 0 ? after / before : null };
  };
  return [
    ...[...names].map((name) =>
      built(
        name,
        scores.find((score) => score?.parts[name])?.parts[name]?.n ?? null,
        scores.map((score) => score?.parts[name]?.score ?? null),
      ),
    ),
    ...[...also].map((name) =>
      built(
        name.replace(/,none$/, ""),
        null,
        scores.map((score) => score?.also[name] ?? null),
      ),
    ),
  ];
}

function csv(rows: Row[], stages: string[]): string {
  const head = ["benchmark", "role", "n", "chance", "baseline", "baseline_stderr"];
  for (const stage of stages) head.push(stage, `${stage}_stderr`, `${stage}_retention`);
  const cell = (value: string | number | null | undefined) => {
    const written = String(value ?? "");
    return /[",\n]/.test(written) ? `"${written.replaceAll('"', '""')}"` : written;
  };
  const lines = rows.map((row) => [
    row.task,
    row.role,
    row.baseline?.n,
    row.baseline?.chance,
    row.baseline?.score,
    row.baseline?.stderr,
    ...stages.flatMap((stage) => [row.stages[stage]?.score, row.stages[stage]?.stderr, row.stages[stage]?.retention]),
  ]);
  return [head, ...lines].map((line) => line.map(cell).join(",")).join("\n") + "\n";
}
