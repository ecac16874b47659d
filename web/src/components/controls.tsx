/** Part 10: start, pause, resume, abort with a reason, export, replay; and the start form with its settings. */
"use client";

import { useRouter } from "next/navigation";
import { useState, type FormEvent } from "react";

import { Button, Dialog, ErrorBox } from "@/components/basics";
import type { ErrorText, RunSummary } from "@/lib/api";
import { live } from "@/lib/live";
import { asError, download, send } from "@/lib/rest";
import { StartForm } from "./start";

type Asked = "abort" | "start" | "export" | null;

export function Controls({ summary }: { summary: RunSummary }) {
  const [asked, setAsked] = useState<Asked>(null);
  const [error, setError] = useState<ErrorText | null>(null);
  const [busy, setBusy] = useState(false);
  const router = useRouter();
  const { run, state, steerable } = summary;
  const over = ["complete", "aborted", "interrupted", "failed", "lost"].includes(state);
  const replay = summary.source === "replay";

  const attempt = async (work: () => Promise<unknown>) => {
    setBusy(true);
    setError(null);
    try {
      await work();
    } catch (caught) {
      setError(asError(caught));
    } finally {
      setBusy(false);
    }
  };
  const steer = (action: "pause" | "resume") =>
    attempt(async () => live.update(await send<RunSummary>("POST", `/${action}/${run}`)));
  const replayIt = () =>
    attempt(async () => {
      const { job } = await send<{ job: string }>("POST", `/replay/${run}`, { speed: 20 });
      router.push(`/run/?id=${job}`);
    });

  const held = state === "paused" || state === "pausing";
  return (
    <div className="flex flex-col gap-2" data-part="controls">
      <div role="group" aria-label="Controls" className="flex flex-wrap gap-1.5">
        <Button kind={over ? "main" : "plain"} icon="play" onClick={() => setAsked("start")}>
          Start
        </Button>
        <Button icon="pause" disabled={!steerable || held || busy} onClick={() => steer("pause")}>
          Pause
        </Button>
        <Button
          icon="play"
          kind={held ? "main" : "plain"}
          disabled={!steerable || !held || busy}
          onClick={() => steer("resume")}
        >
          Resume
        </Button>
        <Button
          icon="stop"
          kind="danger"
          disabled={!steerable || state === "aborting" || busy}
          onClick={() => setAsked("abort")}
        >
          Abort
        </Button>
        <Button icon="down" onClick={() => setAsked("export")}>
          Export
        </Button>
        {over && !replay && (
          <Button icon="retry" disabled={busy} onClick={replayIt}>
            Replay
          </Button>
        )}
      </div>
      {replay && <ReplayControls summary={summary} />}
      {error && <ErrorBox error={error} />}
      <Dialog open={asked === "start"} close={() => setAsked(null)} title="Start a run" wide>
        <StartForm from={replay ? null : summary} done={() => setAsked(null)} />
      </Dialog>
      <Dialog open={asked === "abort"} close={() => setAsked(null)} title="Abort this run">
        <AbortForm run={run} done={() => setAsked(null)} />
      </Dialog>
      <Dialog open={asked === "export"} close={() => setAsked(null)} title="Export this run">
        <ExportForm summary={summary} done={() => setAsked(null)} />
      </Dialog>
    </div>
  );
}

function AbortForm({ run, done }: { run: string; done: () => void }) {
  const [reason, setReason] = useState("");
  const [error, setError] = useState<ErrorText | null>(null);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    try {
      live.update(await send<RunSummary>("POST", `/abort/${run}`, { reason: reason.trim() }));
      done();
    } catch (caught) {
      setError(asError(caught));
    }
  };
  return (
    <form onSubmit={submit} className="space-y-3">
      <p className="text-[0.9rem] text-soft">
        The run ends at the next safe point. The last artifact that passed its gate stays the answer.
      </p>
      <label className="block text-[0.9rem] font-medium">
        Reason
        <textarea
          required
          maxLength={500}
          rows={3}
          value={reason}
          onChange={(event) => setReason(event.target.value)}
          className="field mt-1 block w-full font-normal"
          data-first
        />
      </label>
      {error && <ErrorBox error={error} />}
      <div className="flex gap-2">
        <Button type="submit" kind="danger" icon="stop" disabled={reason.trim() === ""}>
          Abort the run
        </Button>
        <Button onClick={done}>Keep it running</Button>
      </div>
    </form>
  );
}

function ExportForm({ summary, done }: { summary: RunSummary; done: () => void }) {
  const [error, setError] = useState<ErrorText | null>(null);
  const fetchIt = async (format: "csv" | "json") => {
    try {
      await download(`/export/${summary.run}?format=${format}`, `${summary.name.replaceAll("/", "_")}.${format}`);
      done();
    } catch (caught) {
      setError(asError(caught));
    }
  };
  return (
    <div className="space-y-3">
      <div className="grid gap-2 sm:grid-cols-2">
        <div className="rounded-md border border-line p-3">
          <p className="mb-2 text-[0.9rem]">One row per stage, attempt and benchmark, for a spreadsheet.</p>
          <Button icon="down" onClick={() => fetchIt("csv")}>
            Save as CSV
          </Button>
        </div>
        <div className="rounded-md border border-line p-3">
          <p className="mb-2 text-[0.9rem]">Summary, settings, benchmarks, gates and result, for a program.</p>
          <Button icon="down" onClick={() => fetchIt("json")}>
            Save as JSON
          </Button>
        </div>
      </div>
      {error && <ErrorBox error={error} />}
    </div>
  );
}

const SPEEDS = [1, 5, 20, 100, 500];

function ReplayControls({ summary }: { summary: RunSummary }) {
  const [position, setPosition] = useState(0);
  const [error, setError] = useState<ErrorText | null>(null);
  const change = async (body: { speed?: number; position?: number }) => {
    try {
      live.update(await send<RunSummary>("PATCH", `/replay/${summary.run}`, body));
      setError(null);
    } catch (caught) {
      setError(asError(caught));
    }
  };
  return (
    <div
      role="group"
      aria-label="Replay"
      className="flex flex-wrap items-center gap-x-4 gap-y-1.5 rounded-md border border-line px-2.5 py-1.5 text-[0.85rem]"
    >
      <span className="font-medium">Replay</span>
      <label className="inline-flex items-center gap-1.5">
        Speed
        <select
          className="field min-h-8 py-0"
          value={SPEEDS.includes(summary.speed ?? 0) ? String(summary.speed) : ""}
          onChange={(event) => change({ speed: Number(event.target.value) })}
        >
          {!SPEEDS.includes(summary.speed ?? 0) && <option value="">{summary.speed ?? 1}×</option>}
          {SPEEDS.map((speed) => (
            <option key={speed} value={speed}>
              {speed}×
            </option>
          ))}
        </select>
      </label>
      <label className="inline-flex items-center gap-1.5">
        Go to
        <input
          type="range"
          min={0}
          max={100}
          value={position}
          aria-valuetext={`${position} %`}
          onChange={(event) => setPosition(Number(event.target.value))}
          onPointerUp={() => change({ position: position / 100 })}
          onKeyUp={(event) => event.key.startsWith("Arrow") && change({ position: position / 100 })}
        />
      </label>
      {error && <ErrorBox error={error} />}
    </div>
  );
}
