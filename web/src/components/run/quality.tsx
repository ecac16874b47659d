/** Part 4: a gauge of the mean core retention and a card per core benchmark. */
"use client";

import { Empty, StageName } from "@/components/basics";
import { answer, coreRetention, grade, tasks, lastAttempt } from "@/lib/derive";
import { benchmark, percent } from "@/lib/format";
import { BASELINE, stageColour } from "@/lib/stages";
import { obj, num, pair } from "@/lib/read";
import type { Score, Settled } from "@/lib/store";

const TONES = { good: "text-good", fair: "text-fair", poor: "text-poor", none: "text-soft" } as const;
const FILLS = { good: "var(--good)", fair: "var(--fair)", poor: "var(--poor)", none: "var(--soft)" } as const;
const GRADES = {
  good: "well kept",
  fair: "above the threshold",
  poor: "below the threshold",
  none: "not measured",
} as const;

export function Quality({ view }: { view: Settled }) {
  const found = answer(view);
  if (found === null) return <Empty>Quality appears once the baseline is measured</Empty>;
  const untouched = found.stage === BASELINE;
  const retention = untouched ? { value: 1, final: true } : coreRetention(found.attempt);
  const metrics = obj(view.result?.metrics);
  const value = num(metrics.core_retention) ?? retention.value;
  const baseline = lastAttempt(view, BASELINE);
  const core = tasks(view).filter((score) => score.role === "core");
  return (
    <div className="grid gap-4 md:grid-cols-[15rem_1fr]">
      <div>
        <Gauge
          value={value}
          untouched={untouched}
          floor={view.limits.cumulative}
          interval={pair(metrics.core_retention_interval)}
        />
        <p className="mt-1 flex flex-wrap justify-center gap-x-1.5 text-[0.85rem] text-soft">
          core retention of
          {untouched ? (
            " the input model itself"
          ) : (
            <StageName
              stage={found.stage}
              titles={view.titles}
              {...(found.attempt.number > 1 ? { attempt: found.attempt.number } : {})}
            />
          )}
          {!retention.final && " so far"}
        </p>
      </div>
      <ul className="grid grid-cols-[repeat(auto-fill,minmax(8rem,1fr))] content-start gap-2">
        {core.map(({ task }) => (
          <Card
            key={task}
            before={baseline?.results[task] ?? null}
            after={untouched ? null : (found.attempt.results[task] ?? null)}
            untouched={untouched}
            task={task}
            stage={found.stage}
            floor={view.limits.benchmark}
          />
        ))}
      </ul>
    </div>
  );
}

/** The angle of a retention on a half circle that spans 0 to 100 %. */
function at(value: number, radius: number): [number, number] {
  const angle = Math.PI * (1 - Math.min(1, Math.max(0, value)));
  return [100 + radius * Math.cos(angle), 100 - radius * Math.sin(angle)];
}

function arc(from: number, to: number, radius: number): string {
  const [x0, y0] = at(from, radius);
  const [x1, y1] = at(to, radius);
  return `M${x0.toFixed(2)} ${y0.toFixed(2)}A${radius} ${radius} 0 0 1 ${x1.toFixed(2)} ${y1.toFixed(2)}`;
}

/** The retention on a half circle; of an untouched model it is 100 % by definition, and no praise is due. */
function Gauge({
  value,
  untouched,
  floor,
  interval,
}: {
  value: number | null;
  untouched: boolean;
  floor: number;
  interval: [number, number] | null;
}) {
  const state = untouched ? "none" : grade(value, floor);
  const verdict = untouched ? "not compressed" : GRADES[state];
  const [mx0, my0] = at(floor, 68);
  const [mx1, my1] = at(floor, 96);
  const [tx, ty] = at(floor, 107);
  return (
    <div
      role="meter"
      aria-label="Core retention"
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={value === null ? 0 : Math.min(100, 100 * value)}
      aria-valuetext={`${percent(value)}, ${verdict}; threshold ${percent(floor, 0)}`}
      className="relative mx-auto max-w-60"
      data-figure="retention"
    >
      <svg viewBox="0 -14 224 122" className="keeps-colour w-full" aria-hidden="true">
        <path d={arc(0, 1, 82)} fill="none" stroke="var(--raised)" strokeWidth={17} />
        {value !== null && value > 0 && (
          <path d={arc(0, value, 82)} fill="none" stroke={FILLS[state]} strokeWidth={17} />
        )}
        <line x1={mx0} y1={my0} x2={mx1} y2={my1} stroke="var(--ink)" strokeWidth={2} />
        <text x={tx} y={ty + 2} fill="var(--soft)" fontSize={11} textAnchor="start">
          {percent(floor, 0)}
        </text>
      </svg>
      <div className="absolute inset-x-0 bottom-0 mr-[11%] text-center" aria-hidden="true">
        <p className="num text-2xl font-semibold">{percent(value)}</p>
        <p className={`text-[0.8rem] font-medium ${TONES[state]}`}>{verdict}</p>
      </div>
      {interval !== null && (
        <p className="sr-only">
          95 % interval {percent(interval[0])} to {percent(interval[1])}
        </p>
      )}
    </div>
  );
}

function Card({
  task,
  before,
  after,
  untouched,
  stage,
  floor,
}: {
  task: string;
  before: Score | null;
  after: Score | null;
  untouched: boolean;
  stage: string;
  floor: number;
}) {
  const informative = before?.informative ?? true;
  const retention = untouched ? (before === null ? null : 1) : (after?.retention ?? null);
  const state = informative ? grade(retention, floor) : "none";
  const share = (value: number) => `${(100 * Math.min(1.1, Math.max(0, value))) / 1.1}%`;
  return (
    <li className="rounded-md bg-raised/60 px-2.5 py-2" data-task={task}>
      <h3 className="truncate text-[0.82rem] text-soft">{benchmark(task)}</h3>
      <p className={`num text-[1.05rem] font-semibold ${untouched ? "" : TONES[state]}`} data-figure="retention">
        {percent(retention)}
      </p>
      <div className="keeps-colour relative mt-1 mb-1.5 h-1.5 rounded-full bg-line" aria-hidden="true">
        {retention !== null && (
          <div className="h-full rounded-full" style={{ width: share(retention), background: stageColour(stage) }} />
        )}
        {after?.retentionInterval != null && (
          <div
            className="absolute top-1/2 h-px bg-ink"
            style={{
              left: share(after.retentionInterval[0]),
              right: `calc(100% - ${share(after.retentionInterval[1])})`,
            }}
          />
        )}
        <div className="absolute -inset-y-0.5 w-0.5 bg-ink" style={{ left: share(floor) }} />
      </div>
      <p className="num text-[0.78rem] text-soft">
        {informative ? `${percent(before?.score)}${untouched ? "" : ` → ${percent(after?.score)}`}` : "near chance"}
      </p>
    </li>
  );
}
