/** All runs, past and present; the runs of one study together; search, and a choice to compare. */
"use client";

import { useRouter } from "next/navigation";
import { useEffect, useMemo, useState } from "react";

import { Button, Dialog, Empty, ErrorBox, RunStateLabel, Skeleton } from "@/components/basics";
import { Link } from "@/components/link";
import type { ErrorText, RunList as RunListAnswer, RunState, RunSummary, StageSummary } from "@/lib/api";
import { moment, percent, seconds, size, times } from "@/lib/format";
import { useConnection, useSummaries } from "@/lib/live";
import { asError, get } from "@/lib/rest";
import { levelTitle, stageColour, stageTitle } from "@/lib/stages";
import { Icon } from "./icons";
import { StartForm } from "./start";

const STATES: { key: string; name: string }[] = [
  { key: "", name: "Every state" },
  { key: "running", name: "Running" },
  { key: "paused", name: "Paused" },
  { key: "complete", name: "Complete" },
  { key: "aborted", name: "Aborted" },
  { key: "interrupted", name: "Interrupted" },
  { key: "failed", name: "Failed" },
  { key: "lost", name: "Lost" },
];
const PAGE = 100;
const OVER: RunState[] = ["complete", "aborted", "interrupted", "failed", "lost"];

export function RunList() {
  const [query, setQuery] = useState("");
  const [state, setState] = useState("");
  const [limit, setLimit] = useState(PAGE);
  const [found, setFound] = useState<RunListAnswer | null>(null);
  const [error, setError] = useState<ErrorText | null>(null);
  const [chosen, setChosen] = useState<readonly string[]>([]);
  const [starting, setStarting] = useState(false);
  const [again, setAgain] = useState(0);
  const connection = useConnection();
  const changed = useSummaries();
  const router = useRouter();

  useEffect(() => {
    const stop = new AbortController();
    // Waits while somebody types; the first list comes at once.
    const pause = query === "" ? 0 : 150;
    const ask = setTimeout(() => {
      get<RunListAnswer>(
        `/runs?query=${encodeURIComponent(query)}&limit=${limit}${state && `&state=${state}`}`,
        stop.signal,
      ).then(
        (answer) => {
          setFound(answer);
          setError(null);
        },
        (caught) => stop.signal.aborted || setError(asError(caught)),
      );
    }, pause);
    return () => {
      clearTimeout(ask);
      stop.abort();
    };
    // A new connection may have missed changes.
  }, [query, state, limit, again, connection]);

  const runs = useMemo(() => {
    if (found === null) return [];
    const listed = new Set(found.runs.map((run) => run.run));
    const fresh = query === "" && state === "" ? Object.values(changed).filter((run) => !listed.has(run.run)) : [];
    const all = [...fresh, ...found.runs.map((run) => changed[run.run] ?? run)];
    return all.sort((a, b) => (b.started ?? 0) - (a.started ?? 0));
  }, [found, changed, query, state]);
  const groups = useMemo(() => grouped(runs), [runs]);
  const choose = (run: string) =>
    setChosen(chosen.includes(run) ? chosen.filter((one) => one !== run) : [...chosen, run]);
  const now = runs.filter((run) => !OVER.includes(run.state)).length;

  return (
    <div className="space-y-4">
      <div className="flex flex-wrap items-end justify-between gap-3">
        <div>
          <h1 className="text-xl font-semibold">Runs</h1>
          <p className="text-[0.88rem] text-soft" role="status">
            {found === null
              ? "Loading"
              : `${Math.max(found.total, runs.length)} ${query || state ? "found" : "in all"}${now > 0 ? `, ${now} under way` : ""}`}
          </p>
        </div>
        <div className="flex flex-wrap items-end gap-2">
          <label className="text-[0.82rem] text-soft">
            <span className="sr-only">Search</span>
            <input
              type="search"
              placeholder="Name, model, vptq.bits=4"
              value={query}
              onChange={(event) => setQuery(event.target.value)}
              className="field w-56 text-ink"
            />
          </label>
          <label>
            <span className="sr-only">State</span>
            <select className="field" value={state} onChange={(event) => setState(event.target.value)}>
              {STATES.map(({ key, name }) => (
                <option key={key} value={key}>
                  {name}
                </option>
              ))}
            </select>
          </label>
          <Button disabled={chosen.length < 2} onClick={() => router.push(`/compare/?runs=${chosen.join(",")}`)}>
            Compare{chosen.length > 0 && ` ${chosen.length}`}
          </Button>
          <Button kind="main" icon="play" onClick={() => setStarting(true)}>
            Start a run
          </Button>
        </div>
      </div>

      {error !== null && <ErrorBox error={error} retry={() => setAgain(again + 1)} />}
      {found === null && error === null && <Skeleton className="h-64" />}
      {found !== null && runs.length === 0 && (
        <Empty>
          {query || state ? (
            "No run matches"
          ) : (
            <span>
              No runs yet. Start one here, or with <code className="font-mono">python run.py</code>: it shows up by
              itself.
            </span>
          )}
        </Empty>
      )}
      {groups.map((group) =>
        group.study === null ? (
          <RunTable key={group.runs[0]?.run} runs={group.runs} chosen={chosen} choose={choose} label="Runs" />
        ) : (
          <div key={group.study} className="relative rounded-lg border border-line bg-card">
            <details open>
              <summary className="flex flex-wrap items-center gap-x-3 py-2 pr-36 pl-3 text-[0.9rem]">
                <Icon name="right" className="size-3 transition-transform [details[open]>summary>&]:rotate-90" />
                <span className="font-semibold [overflow-wrap:anywhere]">{group.study}</span>
                <span className="text-soft">study, {group.runs.length} runs</span>
              </summary>
              <RunTable
                runs={group.runs}
                chosen={chosen}
                choose={choose}
                label={`Runs of the study ${group.study}`}
                inside
              />
            </details>
            {/* Beside the summary, which is a button of its own and may hold no link. */}
            <Link
              className="absolute top-2 right-3 text-[0.9rem] underline underline-offset-2"
              href={`/compare/?runs=${group.runs
                .slice(0, 20)
                .map((run) => run.run)
                .join(",")}`}
            >
              Compare them
            </Link>
          </div>
        ),
      )}
      {found !== null && found.total > limit && <Button onClick={() => setLimit(limit + PAGE)}>Show more</Button>}
      <Dialog open={starting} close={() => setStarting(false)} title="Start a run" wide>
        <StartForm from={null} done={() => setStarting(false)} />
      </Dialog>
    </div>
  );
}

interface Group {
  study: string | null;
  runs: RunSummary[];
}

/** Neighbouring single runs in one table; a study's runs together, where its newest stands. */
function grouped(runs: readonly RunSummary[]): Group[] {
  const groups: Group[] = [];
  const studies = new Map<string, Group>();
  for (const run of runs) {
    if (run.study !== null) {
      const known = studies.get(run.study);
      if (known !== undefined) {
        known.runs.push(run);
        continue;
      }
      const group = { study: run.study, runs: [run] };
      studies.set(run.study, group);
      groups.push(group);
      continue;
    }
    const last = groups.at(-1);
    if (last !== undefined && last.study === null) last.runs.push(run);
    else groups.push({ study: null, runs: [run] });
  }
  return groups;
}

function RunTable({
  runs,
  chosen,
  choose,
  label,
  inside = false,
}: {
  runs: RunSummary[];
  chosen: readonly string[];
  choose: (run: string) => void;
  label: string;
  inside?: boolean;
}) {
  return (
    <div className={inside ? "border-t border-line" : "overflow-hidden rounded-lg border border-line bg-card"}>
      <table className="w-full border-separate border-spacing-0 text-[0.88rem]">
        <caption className="sr-only">{label}</caption>
        <thead className="max-md:sr-only">
          <tr className="text-left text-soft">
            <th scope="col" className="cell w-8">
              <span className="sr-only">Choose to compare</span>
            </th>
            <th scope="col" className="cell font-medium">
              Run
            </th>
            <th scope="col" className="cell w-32 font-medium">
              State
            </th>
            <th scope="col" className="cell w-36 font-medium">
              Stages
            </th>
            <th scope="col" className="cell w-24 text-right font-medium">
              Size
            </th>
            <th scope="col" className="cell w-20 text-right font-medium">
              Ratio
            </th>
            <th scope="col" className="cell w-24 text-right font-medium">
              Core kept
            </th>
            <th scope="col" className="cell w-28 font-medium max-lg:hidden">
              Ends at
            </th>
            <th scope="col" className="cell w-32 text-right font-medium max-lg:hidden">
              Time
            </th>
          </tr>
        </thead>
        <tbody>
          {runs.map((run) => (
            <tr
              key={run.run}
              data-run={run.run}
              className="max-md:grid max-md:grid-cols-[1.6rem_repeat(3,1fr)] max-md:border-b max-md:border-line max-md:p-2.5 max-md:last:border-0 md:hover:bg-raised/50 [&>*]:max-md:border-0! [&>*]:max-md:p-0.5!"
            >
              <td className="cell">
                <input
                  type="checkbox"
                  className="mt-0.5 size-4"
                  aria-label={`Compare ${run.name}`}
                  checked={chosen.includes(run.run)}
                  onChange={() => choose(run.run)}
                />
              </td>
              <th scope="row" className="cell text-left font-normal max-md:col-span-2">
                <Link
                  href={`/run/?id=${run.run}`}
                  className="font-medium underline-offset-2 [overflow-wrap:anywhere] hover:underline"
                >
                  {run.name}
                </Link>
                <span className="block text-[0.8rem] text-soft">
                  {[run.compressor, run.model].filter((name) => name !== "").join(" · ")}
                  <span className="max-sm:hidden">
                    {run.model !== "" && " · "}
                    {moment(run.started)}
                  </span>
                  {run.source === "replay" && " · replay"}
                </span>
              </th>
              <td className="cell max-md:text-right">
                <RunStateLabel state={run.state} />
                {run.current !== null && (
                  <span className="num block text-[0.8rem] text-soft">
                    {stageTitle(run.current)}
                    {run.progress !== null && ` ${Math.round(100 * run.progress)} %`}
                  </span>
                )}
              </td>
              <td className="cell max-md:col-span-4 max-md:col-start-2">
                <StageDots stages={run.stages} />
              </td>
              <td className="cell num text-right max-md:col-start-2 max-md:text-left">{size(run.compressed_bytes)}</td>
              <td className="cell num text-right max-md:text-center">{times(run.ratio)}</td>
              <td className="cell num text-right">{percent(run.core_retention)}</td>
              <td className="cell max-lg:hidden">{OVER.includes(run.state) ? levelTitle(run.level) : "–"}</td>
              <td className="cell num text-right max-lg:hidden">{seconds(run.seconds)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const STATE_WORDS: Record<StageSummary["state"], string> = {
  pending: "pending",
  running: "in progress",
  retrying: "retrying",
  passed: "passed",
  failed: "failed",
  skipped: "not reached",
};

/** A short bar per stage: filled where it passed, half where it runs, hollow where it failed. */
function StageDots({ stages }: { stages: StageSummary[] }) {
  return (
    <span className="inline-flex gap-1 py-1">
      {stages.map((stage) => (
        <span
          key={stage.stage}
          title={`${stageTitle(stage.stage)}: ${STATE_WORDS[stage.state]}`}
          className="keeps-colour inline-block h-2.5 w-6 overflow-hidden rounded-sm border"
          style={{
            borderColor: ["pending", "skipped"].includes(stage.state) ? "var(--line)" : stageColour(stage.stage),
            background: stage.state === "passed" ? stageColour(stage.stage) : "transparent",
          }}
        >
          <span className="sr-only">
            {stageTitle(stage.stage)} {STATE_WORDS[stage.state]}{" "}
          </span>
          {(stage.state === "running" || stage.state === "retrying") && (
            <span className="block h-full w-1/2 animate-pulse" style={{ background: stageColour(stage.stage) }} />
          )}
          {stage.state === "failed" && (
            <svg viewBox="0 0 24 10" className="block size-full" aria-hidden="true">
              <path d="M8 1.5l8 7M16 1.5l-8 7" stroke={stageColour(stage.stage)} strokeWidth="1.6" />
            </svg>
          )}
        </span>
      ))}
    </span>
  );
}
