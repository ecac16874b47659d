/**
 * Part 9: the events, newest last. Only the rows in sight exist in the document; a row is 30 px high, an open one
 * has a box of fixed height more. Follows the end until somebody scrolls up.
 */
"use client";

import { memo, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "react";

import { Button, Empty, StageMark } from "@/components/basics";
import { Icon } from "@/components/icons";
import { describe, type Described, type Sort } from "@/lib/describe";
import { clock } from "@/lib/format";
import type { RunView } from "@/lib/store";
import type { RunEvent } from "@/lib/types";

const ROW = 30;
const DETAILS = 190;
const MARGIN = 8;

const FILTERS: { key: string; name: string; sorts: Sort[] | null }[] = [
  { key: "all", name: "All", sorts: null },
  { key: "gates", name: "Gates and retries", sorts: ["gate", "retry", "problem"] },
  { key: "problems", name: "Problems", sorts: ["problem"] },
  { key: "scores", name: "Scores", sorts: ["score"] },
];

/** Descriptions are made once an event. */
const described = new WeakMap<RunEvent, Described>();
function say(event: RunEvent, titles: Record<string, string>): Described {
  let found = described.get(event);
  if (found === undefined) {
    found = describe(event, titles);
    described.set(event, found);
  }
  return found;
}

export function EventLog({ view }: { view: RunView }) {
  const [filter, setFilter] = useState("all");
  const [open, setOpen] = useState<ReadonlySet<number>>(new Set());
  const [follow, setFollow] = useState(true);
  const [top, setTop] = useState(0);
  const box = useRef<HTMLDivElement>(null);
  const sorts = FILTERS.find((one) => one.key === filter)?.sorts ?? null;
  const events = useMemo(
    () => (sorts === null ? view.log : view.log.filter((event) => sorts.includes(say(event, view.titles).sort))),
    [view.log, view.titles, sorts],
  );
  // Rows of open events, ascending: each moves all later rows down.
  const openRows = useMemo(() => {
    if (open.size === 0) return [];
    const rows: number[] = [];
    events.forEach((event, index) => open.has(event.seq) && rows.push(index));
    return rows;
  }, [events, open]);
  const offset = (index: number) => index * ROW + openRows.filter((row) => row < index).length * DETAILS;
  const height = events.length * ROW + openRows.length * DETAILS;
  const [inSight, setInSight] = useState(300);

  useLayoutEffect(() => {
    if (follow && box.current !== null) box.current.scrollTop = box.current.scrollHeight;
  }, [follow, height]);
  useEffect(() => {
    if (box.current === null) return;
    const resized = new ResizeObserver(([entry]) => entry && setInSight(entry.contentRect.height));
    resized.observe(box.current);
    return () => resized.disconnect();
  }, []);

  // While the end is followed, what is in sight follows from the height; the scroll that ensues needs no second drawing.
  const seen = follow ? Math.max(0, height - inSight) : top;
  let first = Math.max(0, Math.floor(seen / ROW) - openRows.length * Math.ceil(DETAILS / ROW) - MARGIN);
  while (first < events.length && offset(first + 1) < seen - MARGIN * ROW) first += 1;
  let last = first;
  while (last < events.length && offset(last) < seen + inSight + MARGIN * ROW) last += 1;

  const toggle = useCallback((seq: number) => {
    setOpen((now) => {
      const next = new Set(now);
      if (!next.delete(seq)) next.add(seq);
      return next;
    });
    if (box.current !== null) setTop(box.current.scrollTop);
    setFollow(false);
  }, []);
  return (
    <>
      <div className="mb-2 flex flex-wrap items-center gap-1" role="group" aria-label="Events shown">
        {FILTERS.map((one) => (
          <button
            key={one.key}
            type="button"
            aria-pressed={filter === one.key}
            onClick={() => setFilter(one.key)}
            className={`min-h-7 rounded border px-2 text-[0.82rem] ${filter === one.key ? "border-ink font-semibold" : "border-line text-soft hover:text-ink"}`}
          >
            {one.name}
          </button>
        ))}
        <label className="ml-auto inline-flex min-h-7 items-center gap-1.5 text-[0.82rem]">
          <input
            type="checkbox"
            checked={follow}
            onChange={(event) => {
              if (box.current !== null) setTop(box.current.scrollTop);
              setFollow(event.target.checked);
            }}
          />
          Follow
        </label>
      </div>
      <div
        ref={box}
        tabIndex={0}
        role="region"
        aria-label={`Event log, ${events.length} events`}
        data-figure="events"
        data-count={events.length}
        onScroll={(event) => {
          const at = event.currentTarget;
          const atEnd = at.scrollHeight - at.scrollTop - at.clientHeight < ROW;
          if (atEnd && follow) return;
          setTop(at.scrollTop);
          setFollow(atEnd);
        }}
        className="relative h-96 shrink-0 overflow-x-hidden overflow-y-auto rounded-md border border-line [contain:strict] xl:h-[34rem]"
      >
        {events.length === 0 && (
          <div className="p-3">
            <Empty>No such events</Empty>
          </div>
        )}
        <ol style={{ height }} className="relative">
          {events.slice(first, last).map((event, index) => {
            const row = first + index;
            return (
              <Row
                key={event.seq}
                event={event}
                said={say(event, view.titles)}
                open={open.has(event.seq)}
                toggle={toggle}
                top={offset(row)}
                place={row + 1}
                count={events.length}
              />
            );
          })}
        </ol>
      </div>
      {!follow && (
        <Button kind="quiet" className="mt-1 self-end" icon="down" onClick={() => setFollow(true)}>
          To the latest
        </Button>
      )}
    </>
  );
}

const TONES = { plain: "", good: "text-good", fair: "text-fair", poor: "text-poor" } as const;

const Row = memo(function Row({
  event,
  said,
  open,
  toggle,
  top,
  place,
  count,
}: {
  event: RunEvent;
  said: Described;
  open: boolean;
  toggle: (seq: number) => void;
  top: number;
  place: number;
  count: number;
}) {
  return (
    <li
      style={{ top, height: open ? ROW + DETAILS : ROW }}
      aria-posinset={place}
      aria-setsize={count}
      className="absolute inset-x-0"
    >
      <button
        type="button"
        aria-expanded={open}
        onClick={() => toggle(event.seq)}
        style={{ height: ROW }}
        className="flex w-full items-center gap-2 px-2 text-left text-[0.83rem] hover:bg-raised focus-visible:-outline-offset-2"
      >
        <Icon name="right" className={`size-3 text-soft ${open ? "rotate-90" : ""}`} />
        <time className="num shrink-0 text-soft">{clock(event.time)}</time>
        {event.stage !== null && <StageMark stage={event.stage} />}
        <span className={`min-w-0 truncate ${TONES[said.tone]}`}>{said.title}</span>
      </button>
      {open && (
        <pre
          tabIndex={0}
          aria-label="Details of the event"
          style={{ height: DETAILS - 8 }}
          className="mx-2 overflow-auto rounded bg-raised p-2 font-mono text-[0.78rem] whitespace-pre-wrap [overflow-wrap:anywhere]"
        >
          {JSON.stringify(event.data, null, 2)}
        </pre>
      )}
    </li>
  );
});
