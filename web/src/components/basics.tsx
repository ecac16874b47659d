/** What all pages are made of: a part with its heading, buttons, states, notices. */
"use client";

import { useEffect, useId, useRef, type ButtonHTMLAttributes, type ReactNode } from "react";

import type { ErrorText, RunState } from "@/lib/api";
import type { StageState } from "@/lib/derive";
import { stageColour, stageTitle } from "@/lib/stages";
import { Icon, type IconName } from "./icons";

/** One of the page's parts: a region with a heading. */
export function Part({
  id,
  title,
  hint,
  aside,
  className = "",
  children,
}: {
  id: string;
  title: string;
  hint?: ReactNode;
  aside?: ReactNode;
  className?: string;
  children: ReactNode;
}) {
  return (
    <section
      aria-labelledby={`${id}-title`}
      data-part={id}
      className={`flex min-w-0 flex-col rounded-lg border border-line bg-card p-3.5 sm:p-4 ${className}`}
    >
      <div className="mb-2.5 flex flex-wrap items-baseline gap-x-3 gap-y-1">
        <h2 id={`${id}-title`} className="text-[0.95rem] font-semibold">
          {title}
        </h2>
        {hint && <p className="text-[0.82rem] text-soft">{hint}</p>}
        {aside && <div className="ml-auto flex flex-wrap items-center gap-2">{aside}</div>}
      </div>
      {children}
    </section>
  );
}

type ButtonKind = "main" | "plain" | "danger" | "quiet";
const BUTTONS: Record<ButtonKind, string> = {
  main: "border-ink bg-ink text-card hover:opacity-85",
  plain: "border-edge bg-card hover:bg-raised",
  danger: "border-poor bg-card text-poor hover:bg-raised",
  quiet: "border-transparent hover:bg-raised",
};

export function Button({
  kind = "plain",
  icon,
  children,
  className = "",
  ...rest
}: ButtonHTMLAttributes<HTMLButtonElement> & { kind?: ButtonKind; icon?: IconName }) {
  return (
    <button
      type="button"
      className={`inline-flex min-h-[2.1rem] items-center gap-1.5 rounded-md border px-2.5 text-[0.88rem] font-medium whitespace-nowrap disabled:cursor-not-allowed disabled:border-line disabled:bg-card disabled:text-soft ${BUTTONS[kind]} ${className}`}
      {...rest}
    >
      {icon && <Icon name={icon} />}
      {children}
    </button>
  );
}

/** A small square in the stage's colour. */
export function StageMark({ stage }: { stage: string }) {
  return (
    <span
      className="keeps-colour inline-block size-2.5 shrink-0 rounded-[3px]"
      style={{ background: stageColour(stage) }}
      aria-hidden="true"
    />
  );
}

export function StageName({
  stage,
  titles,
  attempt,
}: {
  stage: string;
  titles?: Record<string, string>;
  attempt?: number;
}) {
  return (
    <span className="inline-flex items-center gap-1.5 whitespace-nowrap">
      <StageMark stage={stage} />
      {stageTitle(stage, titles)}
      {attempt !== undefined && <span className="text-soft">{` ${attempt}`}</span>}
    </span>
  );
}

const STAGE_STATES: Record<StageState, { word: string; icon: IconName; tone: string }> = {
  pending: { word: "Pending", icon: "ring", tone: "text-soft" },
  running: { word: "In progress", icon: "play", tone: "text-ink" },
  complete: { word: "Complete", icon: "check", tone: "text-good" },
  failed: { word: "Failed", icon: "cross", tone: "text-poor" },
  retrying: { word: "Retrying", icon: "retry", tone: "text-fair" },
  skipped: { word: "Not reached", icon: "dash", tone: "text-soft" },
  off: { word: "Switched off", icon: "dash", tone: "text-soft" },
};

export function StageStateLabel({ state }: { state: StageState }) {
  const { word, icon, tone } = STAGE_STATES[state];
  return (
    <span className={`inline-flex items-center gap-1 text-[0.85rem] font-medium ${tone}`}>
      <Icon name={icon} className="size-3.5" />
      {word}
    </span>
  );
}

const RUN_STATES: Record<RunState, { word: string; tone: string; icon: IconName }> = {
  starting: { word: "Starting", tone: "text-soft", icon: "ring" },
  running: { word: "Running", tone: "text-good", icon: "play" },
  pausing: { word: "Pausing", tone: "text-fair", icon: "pause" },
  paused: { word: "Paused", tone: "text-fair", icon: "pause" },
  aborting: { word: "Stopping", tone: "text-fair", icon: "stop" },
  complete: { word: "Complete", tone: "text-ink", icon: "check" },
  aborted: { word: "Aborted", tone: "text-poor", icon: "stop" },
  interrupted: { word: "Interrupted", tone: "text-fair", icon: "stop" },
  failed: { word: "Failed", tone: "text-poor", icon: "cross" },
  lost: { word: "Lost", tone: "text-poor", icon: "cross" },
};

export function RunStateLabel({ state }: { state: RunState }) {
  const { word, tone, icon } = RUN_STATES[state] ?? { word: state, tone: "text-soft", icon: "dot" as const };
  return (
    <span className={`inline-flex items-center gap-1 text-[0.88rem] font-semibold whitespace-nowrap ${tone}`}>
      <Icon name={icon} className="size-3.5" />
      {word}
    </span>
  );
}

/** An error as the server words it: what, where, how to mend it. */
export function ErrorBox({ error, retry }: { error: ErrorText; retry?: () => void }) {
  return (
    <div role="alert" className="rounded-lg border border-poor bg-card p-4">
      <p className="font-semibold text-poor first-letter:uppercase">{error.what}</p>
      {error.where && <p className="mt-1 font-mono text-[0.82rem] break-all text-soft">{error.where}</p>}
      {error.fix && <p className="mt-1 text-[0.9rem] first-letter:uppercase">{error.fix}</p>}
      {retry && (
        <Button className="mt-3" icon="retry" onClick={retry}>
          Try again
        </Button>
      )}
    </div>
  );
}

/** What stands where there is nothing to show yet. */
export function Empty({ children }: { children: ReactNode }) {
  return (
    <p className="grid min-h-24 flex-1 place-items-center rounded-md border border-dashed border-line p-4 text-center text-[0.88rem] text-soft">
      {children}
    </p>
  );
}

export function Skeleton({ className = "h-40" }: { className?: string }) {
  return <div className={`animate-pulse rounded-md bg-raised ${className}`} aria-hidden="true" />;
}

/** A modal dialog: the browser's own, which keeps the focus inside and closes on Escape. */
export function Dialog({
  open,
  close,
  title,
  wide = false,
  children,
}: {
  open: boolean;
  close: () => void;
  title: string;
  wide?: boolean;
  children: ReactNode;
}) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const dialog = ref.current;
    if (dialog === null) return;
    if (open && !dialog.open) {
      dialog.showModal();
      dialog.querySelector<HTMLElement>("[data-first]")?.focus(); // else the button that closes has the focus
    }
    if (!open && dialog.open) dialog.close();
  }, [open]);
  return (
    <dialog
      ref={ref}
      aria-labelledby={id}
      onClose={close}
      onClick={(event) => event.target === ref.current && close()}
      className={`w-[calc(100vw-1.5rem)] rounded-xl border border-line bg-card p-0 shadow-xl ${wide ? "max-w-3xl" : "max-w-lg"}`}
    >
      {open && (
        <div className="p-4 sm:p-5">
          <div className="mb-3 flex items-start justify-between gap-3">
            <h2 id={id} className="text-lg font-semibold">
              {title}
            </h2>
            <Button kind="quiet" icon="cross" aria-label="Close" onClick={close} className="-mt-1 -mr-1.5" />
          </div>
          {children}
        </div>
      )}
    </dialog>
  );
}

/** A table for those who cannot see the chart beside it. */
export function HiddenTable({ caption, head, rows }: { caption: string; head: string[]; rows: string[][] }) {
  return (
    <div className="sr-only">
      <table>
        <caption>{caption}</caption>
        <thead>
          <tr>
            {head.map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, index) => (
            <tr key={index}>
              {row.map((cell, column) =>
                column === 0 ? (
                  <th key={column} scope="row">
                    {cell}
                  </th>
                ) : (
                  <td key={column}>{cell}</td>
                ),
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
