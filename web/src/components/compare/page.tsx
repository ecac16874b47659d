/** Some runs side by side: their frontier, what each benchmark keeps, the settings that differ. */
"use client";

import dynamic from "next/dynamic";
import { useRouter, useSearchParams } from "next/navigation";
import { useEffect, useState } from "react";

import { Button, Empty, ErrorBox, Part, RunStateLabel, Skeleton, StageName } from "@/components/basics";
import { Link } from "@/components/link";
import type { Comparison, Difference, ErrorText, RunList, RunSummary } from "@/lib/api";
import { benchmark, figure, percent, points, size, times } from "@/lib/format";
import { pair as interval } from "@/lib/read";
import { asError, get } from "@/lib/rest";
import { levelTitle, stageColour } from "@/lib/stages";

const Frontier = dynamic(() => import("./frontier").then((found) => found.Frontier), {
  ssr: false,
  loading: () => <Skeleton className="h-72" />,
});

export function ComparePage() {
  const ids = (useSearchParams().get("runs") ?? "").split(",").filter((id) => id !== "");
  const key = ids.join(",");
  const [found, setFound] = useState<Comparison | null>(null);
  const [error, setError] = useState<ErrorText | null>(null);

  useEffect(() => {
    setError(null);
    if (key.split(",").length < 2) {
      setFound(null);
      return;
    }
    const stop = new AbortController();
    get<Comparison>(`/compare?runs=${key}`, stop.signal).then(
      setFound,
      (caught) => stop.signal.aborted || setError(asError(caught)),
    );
    return () => stop.abort();
  }, [key]);

  return (
    <div className="space-y-4">
      <div className="flex flex-wrap items-end justify-between gap-3">
        <h1 className="text-xl font-semibold">Comparison</h1>
        <Picker ids={ids} />
      </div>
      {error !== null && <ErrorBox error={error} />}
      {ids.length < 2 && (
        <Empty>
          <span>
            Pick at least two runs above, or mark them in the{" "}
            <Link href="/" className="underline">
              list of runs
            </Link>
          </span>
        </Empty>
      )}
      {ids.length >= 2 &&
        error === null &&
        (found === null ? <Skeleton className="h-80" /> : <Found found={found} ids={ids} />)}
    </div>
  );
}

/** Runs are told apart by a letter; colour stays the stages'. */
function letter(index: number): string {
  return String.fromCharCode(65 + (index % 26));
}

/** `94.3 % to 99.8 %`; nothing where there is no interval. */
function spread(value: unknown, write: (bound: number) => string): string {
  const known = interval(value);
  return known === null ? "" : `${write(known[0])} to ${write(known[1])}`;
}

/** Adds a run to the comparison. */
function Picker({ ids }: { ids: string[] }) {
  const [runs, setRuns] = useState<RunSummary[]>([]);
  const router = useRouter();
  useEffect(() => {
    const stop = new AbortController();
    get<RunList>("/runs?limit=100", stop.signal).then(
      (answer) => setRuns(answer.runs),
      () => undefined,
    );
    return () => stop.abort();
  }, []);
  const others = runs.filter((run) => !ids.includes(run.run));
  return (
    <label className="flex items-center gap-2 text-[0.85rem]">
      Add a run
      <select
        className="field max-w-60"
        value=""
        disabled={ids.length >= 20}
        onChange={(event) => router.push(`/compare/?runs=${[...ids, event.target.value].join(",")}`)}
      >
        <option value="">choose</option>
        {others.map((run) => (
          <option key={run.run} value={run.run}>
            {run.name} ({times(run.ratio)})
          </option>
        ))}
      </select>
    </label>
  );
}

function Found({ found, ids }: { found: Comparison; ids: string[] }) {
  const router = useRouter();
  const runs = ids.map((id) => found.runs.find((run) => run.run === id)).filter((run) => run !== undefined);
  const letters = Object.fromEntries(runs.map((run, index) => [run.run, letter(index)]));
  const without = (id: string) => router.push(`/compare/?runs=${ids.filter((one) => one !== id).join(",")}`);
  const order = (pairs: Difference[]) =>
    pairs.filter((pair) => letters[pair.a] !== undefined && letters[pair.b] !== undefined);
  return (
    <>
      <Part id="picked" title="Runs">
        <div className="overflow-x-auto" tabIndex={0} role="region" aria-label="Runs compared">
          <table className="w-full border-separate border-spacing-0 text-[0.88rem]">
            <caption className="sr-only">The runs that are compared</caption>
            <thead>
              <tr className="text-left text-soft">
                {["Run", "State", "Ends at"].map((name) => (
                  <th key={name} scope="col" className="cell font-medium">
                    {name}
                  </th>
                ))}
                {["Size", "Ratio", "Core kept"].map((name) => (
                  <th key={name} scope="col" className="cell text-right font-medium">
                    {name}
                  </th>
                ))}
                <th scope="col" className="cell">
                  <span className="sr-only">Leave out</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {runs.map((run) => (
                <tr key={run.run} data-run={run.run}>
                  <th scope="row" className="cell text-left font-normal">
                    <Letter>{letters[run.run]}</Letter>
                    <Link href={`/run/?id=${run.run}`} className="font-medium underline-offset-2 hover:underline">
                      {run.name}
                    </Link>
                    <span className="ml-2 text-soft">{run.compressor}</span>
                  </th>
                  <td className="cell">
                    <RunStateLabel state={run.state} />
                  </td>
                  <td className="cell">{levelTitle(run.level)}</td>
                  <td className="cell num text-right">{size(run.compressed_bytes)}</td>
                  <td className="cell num text-right">{times(run.ratio)}</td>
                  <td className="cell num text-right">
                    {percent(run.core_retention)}
                    <span className="ml-1.5 text-[0.8rem] text-soft">
                      {spread(run.core_retention_interval, percent)}
                    </span>
                  </td>
                  <td className="cell text-right">
                    <Button
                      kind="quiet"
                      icon="cross"
                      className="min-h-0! p-1!"
                      aria-label={`Leave out ${run.name}`}
                      onClick={() => without(run.run)}
                    />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Part>
      <div className="grid gap-3 sm:gap-4 xl:grid-cols-2">
        <Part id="frontier" title="Frontier" hint="core retention against ratio, 95 % intervals">
          <Frontier points={found.frontier} letters={letters} />
        </Part>
        <Part id="settings" title="Settings that differ" hint={`${found.settings.length}`}>
          {found.settings.length === 0 ? (
            <Empty>The settings are the same</Empty>
          ) : (
            <div className="max-h-96 overflow-auto" tabIndex={0} role="region" aria-label="Settings that differ">
              <table className="w-full border-separate border-spacing-0 text-[0.85rem]">
                <caption className="sr-only">Settings that differ between the runs</caption>
                <thead>
                  <tr className="text-soft">
                    <th scope="col" className="cell text-left font-medium">
                      Setting
                    </th>
                    {runs.map((run) => (
                      <th key={run.run} scope="col" className="cell text-right">
                        <Letter>{letters[run.run]}</Letter>
                      </th>
                    ))}
                  </tr>
                </thead>
                <tbody>
                  {found.settings.map((setting) => (
                    <tr key={setting.name}>
                      <th scope="row" className="cell text-left font-mono text-[0.8rem] font-normal">
                        {setting.name}
                      </th>
                      {runs.map((run) => (
                        <td key={run.run} className="cell num text-right">
                          {figure(setting.values[run.run])}
                        </td>
                      ))}
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
        </Part>
      </div>
      <Part
        id="retention"
        title="Retention"
        hint="of what each run ends with, else of its last attempt; relative to its own baseline, 95 % intervals paired over items"
      >
        <div className="overflow-x-auto" tabIndex={0} role="region" aria-label="Retention of every benchmark">
          <table className="w-full border-separate border-spacing-0 text-[0.88rem]">
            <caption className="sr-only">Retention of every benchmark in every run</caption>
            <thead>
              <tr className="text-soft">
                <th scope="col" className="cell text-left font-medium">
                  Benchmark
                </th>
                {runs.map((run) => (
                  <th key={run.run} scope="col" className="cell text-left font-medium whitespace-nowrap">
                    <Letter>{letters[run.run]}</Letter>
                    <JudgedStage found={found} run={run.run} />
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {found.benchmarks.map((row) => (
                <tr key={row.task} data-task={row.task}>
                  <th scope="row" className="cell text-left font-medium">
                    {benchmark(row.task)} <span className="ml-1 font-normal text-soft">{row.role}</span>
                  </th>
                  {runs.map((run) => {
                    const kept = row.values[run.run] ?? null;
                    return (
                      <td key={run.run} className="cell" data-run={run.run}>
                        {kept === null ? (
                          "–"
                        ) : (
                          <div className="min-w-36">
                            <span className="num font-medium">{percent(kept.retention)}</span>
                            <span className="num ml-1.5 text-[0.8rem] text-soft">
                              {spread(kept.retention_interval, percent)}
                            </span>
                            <Whisker
                              value={kept.retention}
                              bounds={interval(kept.retention_interval)}
                              stage={kept.stage}
                            />
                          </div>
                        )}
                      </td>
                    );
                  })}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Part>
      {order(found.differences).length > 0 && (
        <Part
          id="differences"
          title="Differences"
          hint="of retentions, in points; an interval that leaves out 0 is a difference that the items can tell"
        >
          <div className="max-h-112 overflow-auto" tabIndex={0} role="region" aria-label="Differences between runs">
            <table className="w-full border-separate border-spacing-0 text-[0.88rem]">
              <caption className="sr-only">Differences of retention between pairs of runs</caption>
              <thead>
                <tr className="text-left text-soft">
                  <th scope="col" className="cell font-medium">
                    Benchmark
                  </th>
                  <th scope="col" className="cell font-medium">
                    Pair
                  </th>
                  <th scope="col" className="cell text-right font-medium">
                    Difference
                  </th>
                  <th scope="col" className="cell text-right font-medium">
                    Interval
                  </th>
                  <th scope="col" className="cell font-medium">
                    Items
                  </th>
                </tr>
              </thead>
              <tbody>
                {order(found.differences).map((row) => {
                  const bounds = interval(row.interval);
                  const told = bounds !== null && (bounds[0] > 0 || bounds[1] < 0);
                  return (
                    <tr key={`${row.task} ${row.a} ${row.b}`} className={told ? "font-semibold" : ""}>
                      <th scope="row" className="cell text-left font-[inherit]">
                        {benchmark(row.task)}
                      </th>
                      <td className="cell whitespace-nowrap">
                        {letters[row.b]} − {letters[row.a]}
                      </td>
                      <td className="cell num text-right">{points(row.difference)}</td>
                      <td className="cell num text-right">{spread(row.interval, points) || "–"}</td>
                      <td className="cell font-normal text-soft">{row.paired ? "paired" : "not paired"}</td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        </Part>
      )}
    </>
  );
}

/** The stage whose scores stand in a run's column. */
function JudgedStage({ found, run }: { found: Comparison; run: string }) {
  const stage = found.benchmarks.map((row) => row.values[run]?.stage).find((name) => name !== undefined);
  return stage === undefined ? null : <StageName stage={stage} />;
}

function Letter({ children }: { children: React.ReactNode }) {
  return (
    <span className="mr-2 inline-grid size-5 place-items-center rounded border border-edge text-[0.75rem] font-semibold text-ink">
      {children}
    </span>
  );
}

/** A retention with its interval on a scale from 0 to 110 %. */
function Whisker({ value, bounds, stage }: { value: number | null; bounds: [number, number] | null; stage: string }) {
  const at = (share: number) => 100 * Math.min(1, Math.max(0, share / 1.1));
  if (value === null) return null;
  const [low, high] = bounds ?? [value, value];
  return (
    <svg viewBox="0 0 100 8" preserveAspectRatio="none" className="keeps-colour mt-1 h-2 w-full" aria-hidden="true">
      <line x1={0} x2={100} y1={4} y2={4} stroke="var(--line)" strokeWidth={1} vectorEffect="non-scaling-stroke" />
      <line
        x1={at(1)}
        x2={at(1)}
        y1={0}
        y2={8}
        stroke="var(--soft)"
        strokeWidth={1}
        vectorEffect="non-scaling-stroke"
      />
      <line
        x1={at(low)}
        x2={at(high)}
        y1={4}
        y2={4}
        stroke={stageColour(stage)}
        strokeWidth={3}
        vectorEffect="non-scaling-stroke"
      />
      <line
        x1={at(value)}
        x2={at(value)}
        y1={1}
        y2={7}
        stroke="var(--ink)"
        strokeWidth={2}
        vectorEffect="non-scaling-stroke"
      />
    </svg>
  );
}
