/** Parts 3, 6 and 7: size over stages, quality against ratio, experts. Loaded after the rest of the page. */
"use client";

import { useMemo, useState } from "react";
import {
  CartesianGrid,
  Line,
  LineChart,
  PolarAngleAxis,
  PolarGrid,
  PolarRadiusAxis,
  Radar,
  RadarChart,
  ReferenceLine,
  ResponsiveContainer,
  Tooltip,
  XAxis,
  YAxis,
} from "recharts";

import { Button, Empty, HiddenTable, StageMark } from "@/components/basics";
import { attempts, coreRetention, expertRetention, lastAttempt, tasks, telling } from "@/lib/derive";
import { benchmark, percent, size, times } from "@/lib/format";
import { BASELINE, stageColour, stageTitle } from "@/lib/stages";
import type { Settled } from "@/lib/store";

const TICK = { fill: "var(--soft)", fontSize: 12 };
const TIP = {
  contentStyle: { background: "var(--card)", border: "1px solid var(--edge)", borderRadius: 6, fontSize: 13 },
  itemStyle: { color: "var(--ink)", padding: 0 },
  labelStyle: { color: "var(--ink)", fontWeight: 600 },
  isAnimationActive: false,
} as const;

interface SizePoint {
  key: string;
  label: string;
  stage: string;
  bytes: number;
  ratio: number;
  kept: boolean;
  /** The ratio is written beside it: of several attempts, which lie close together, beside the last one. */
  named: boolean;
}

export function sizePoints(view: Settled): SizePoint[] {
  const points: SizePoint[] = [];
  if (view.originalBytes !== null) {
    points.push({
      key: "input",
      label: "Input",
      stage: BASELINE,
      bytes: view.originalBytes,
      ratio: 1,
      kept: true,
      named: true,
    });
  }
  for (const { stage, attempt, several } of attempts(view)) {
    if (attempt.bytes === null || attempt.ratio === null) continue;
    const label = stageTitle(stage, view.titles) + (several ? ` ${attempt.number}` : "");
    points.push({
      key: `${stage} ${attempt.number}`,
      label,
      stage,
      bytes: attempt.bytes,
      ratio: attempt.ratio,
      kept: attempt.passed !== false,
      named: true,
    });
  }
  points.forEach((point, index) => {
    point.named = points[index + 1]?.stage !== point.stage;
  });
  return points;
}

/** Decades, and 2 and 5 times them, that lie within two figures. */
function ticks(low: number, high: number, steps: readonly number[]): number[] {
  const found: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const step of steps) {
      const tick = step * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  }
  return found;
}

/** Round shares between two, at most about eight. */
function shares(low: number, high: number): number[] {
  const step = high - low > 0.8 ? 0.2 : high - low > 0.3 ? 0.1 : high - low > 0.12 ? 0.05 : 0.02;
  const found: number[] = [];
  for (let tick = Math.ceil(low / step); tick * step <= high + 1e-9; tick += 1) found.push(tick * step);
  return found;
}

export function SizeChart({ view }: { view: Settled }) {
  const points = sizePoints(view);
  if (points.length === 0) return <Empty>Sizes appear once the input is loaded</Empty>;
  const bytes = points.map((point) => point.bytes);
  const goal =
    view.limits.minRatio !== null && view.originalBytes !== null ? view.originalBytes / view.limits.minRatio : null;
  const low = Math.min(...bytes, goal ?? Infinity) / 2.5;
  const high = Math.max(...bytes) * 2.2;
  return (
    <>
      <div className="keeps-colour h-60" aria-hidden="true">
        <ResponsiveContainer width="100%" height="100%" initialDimension={{ width: 320, height: 220 }}>
          <LineChart data={points} margin={{ top: 6, right: 26, bottom: 0, left: 0 }} accessibilityLayer={false}>
            <CartesianGrid stroke="var(--line)" vertical={false} />
            <XAxis
              dataKey="label"
              tick={TICK}
              tickLine={false}
              axisLine={{ stroke: "var(--line)" }}
              interval="preserveStartEnd"
              padding={{ left: 26, right: 16 }}
            />
            <YAxis
              scale="log"
              domain={[low, high]}
              ticks={ticks(low, high, [1, 3])}
              tickFormatter={(value: number) => size(value).replace(/\.?0+ /, " ")}
              tick={TICK}
              tickLine={false}
              axisLine={false}
              width={58}
            />
            {goal !== null && (
              <ReferenceLine
                y={goal}
                stroke="var(--soft)"
                strokeDasharray="4 4"
                label={{
                  value: `goal ${times(view.limits.minRatio)}`,
                  position: "insideTopLeft",
                  fill: "var(--soft)",
                  fontSize: 12,
                }}
              />
            )}
            <Tooltip
              {...TIP}
              formatter={(value) => [size(Number(value)), "on disk"]}
              cursor={{ stroke: "var(--line)" }}
            />
            <Line
              dataKey="bytes"
              stroke="var(--edge)"
              strokeWidth={1.5}
              isAnimationActive={false}
              dot={SizeDot}
              activeDot={false}
            />
          </LineChart>
        </ResponsiveContainer>
      </div>
      <HiddenTable
        caption="Size after each stage"
        head={["Stage", "Size", "Ratio"]}
        rows={points.map((point) => [point.label, size(point.bytes), times(point.ratio)])}
      />
    </>
  );
}

function SizeDot({ cx, cy, payload }: { cx?: number; cy?: number; payload?: SizePoint }) {
  if (cx === undefined || cy === undefined || payload === undefined) return <g />;
  const colour = stageColour(payload.stage);
  return (
    <g>
      <circle cx={cx} cy={cy} r={5.5} fill={payload.kept ? colour : "var(--card)"} stroke={colour} strokeWidth={2} />
      {payload.named && (
        <text
          x={cx}
          y={payload.kept ? cy - 11 : cy + 20}
          textAnchor="middle"
          fill="var(--ink)"
          fontSize={12}
          fontWeight={600}
        >
          {times(payload.ratio)}
        </text>
      )}
    </g>
  );
}

/** Colours of single benchmarks, after Okabe and Ito; dashes tell apart what colour alone does not. */
const LINES = [
  "#0b77b5",
  "#d97706",
  "#0f8f6d",
  "#c0559b",
  "#5d6b79",
  "#a0522d",
  "#6f63c9",
  "#3b9ab2",
  "#9a8a1e",
  "#c4485a",
  "#4f7f3a",
];
const DASHES = ["0", "6 3", "2 3", "8 3 2 3"];

interface Series {
  key: string;
  name: string;
  colour: string;
  dash: string;
  core: boolean;
}

export function QualityChart({ view }: { view: Settled }) {
  const all = tasks(view).filter((score) => score.role !== "integration" && score.informative);
  const series: Series[] = all.map((score, index) => ({
    key: score.task,
    name: benchmark(score.task),
    colour: LINES[index % LINES.length] as string,
    dash: DASHES[Math.floor(index / 4) % DASHES.length] as string,
    core: score.role === "core",
  }));
  const [toggled, setToggled] = useState<ReadonlySet<string>>(new Set());
  const shown = (one: Series) => one.core !== toggled.has(one.key);
  const rows = useMemo(() => qualityRows(view), [view]);
  if (rows.length < 2) return <Empty>Lines begin once a stage has been measured</Empty>;
  const ratios = rows.map((row) => row.ratio as number);
  const high = Math.max(...ratios) * 1.15;
  const figures = rows.flatMap((row) =>
    Object.entries(row).flatMap(([key, value]) => (key === "ratio" || value === null ? [] : [value])),
  );
  const least = Math.min(...figures);
  const top = Math.max(1.02, Math.ceil(Math.max(...figures) * 50) / 50);
  const floor = view.limits.cumulative;
  const bottom = Math.max(0, Math.floor(Math.min(least, floor) * 20 - 0.5) / 20);
  return (
    <>
      <div className="keeps-colour h-72" aria-hidden="true">
        <ResponsiveContainer width="100%" height="100%" initialDimension={{ width: 320, height: 288 }}>
          <LineChart data={rows} margin={{ top: 8, right: 18, bottom: 16, left: 0 }} accessibilityLayer={false}>
            <CartesianGrid stroke="var(--line)" />
            <XAxis
              dataKey="ratio"
              type="number"
              scale="log"
              domain={[1, high]}
              ticks={ticks(1, high, [1, 2, 5])}
              tickFormatter={(value: number) => `${value}×`}
              tick={TICK}
              tickLine={false}
              axisLine={{ stroke: "var(--line)" }}
              label={{
                value: "compression ratio",
                position: "insideBottom",
                offset: -10,
                fill: "var(--soft)",
                fontSize: 12,
              }}
            />
            <YAxis
              domain={[bottom, top]}
              ticks={shares(bottom, top)}
              tickFormatter={(value: number) => `${Math.round(100 * value)} %`}
              tick={TICK}
              tickLine={false}
              axisLine={false}
              width={48}
            />
            <ReferenceLine
              y={floor}
              stroke="var(--poor)"
              strokeDasharray="5 4"
              label={{
                value: `threshold ${percent(floor, 0)}`,
                position: "insideBottomLeft",
                fill: "var(--poor)",
                fontSize: 12,
              }}
            />
            <Tooltip
              {...TIP}
              formatter={(value, name) => [percent(Number(value)), name]}
              labelFormatter={(value) => times(Number(value))}
            />
            {series.filter(shown).map((one) => (
              <Line
                key={one.key}
                dataKey={one.key}
                name={one.name}
                stroke={one.colour}
                strokeDasharray={one.dash}
                strokeWidth={1.7}
                dot={{ r: 2.5, strokeDasharray: "0" }}
                isAnimationActive={false}
                connectNulls
              />
            ))}
            <Line
              dataKey="mean"
              name="Core mean"
              stroke="var(--ink)"
              strokeWidth={2.6}
              dot={{ r: 3.5 }}
              isAnimationActive={false}
              connectNulls
            />
          </LineChart>
        </ResponsiveContainer>
      </div>
      <div className="mt-2 flex flex-wrap gap-1" role="group" aria-label="Lines shown">
        {series.map((one) => (
          <button
            key={one.key}
            type="button"
            aria-pressed={shown(one)}
            onClick={() => {
              const next = new Set(toggled);
              if (!next.delete(one.key)) next.add(one.key);
              setToggled(next);
            }}
            className={`inline-flex min-h-7 items-center gap-1.5 rounded border px-1.5 text-[0.8rem] ${shown(one) ? "border-edge" : "border-line text-soft line-through"}`}
          >
            <svg viewBox="0 0 20 4" className="keeps-colour h-1 w-5" aria-hidden="true">
              <line
                x1="0"
                y1="2"
                x2="20"
                y2="2"
                stroke={one.colour}
                strokeWidth={3}
                strokeDasharray={one.dash}
                opacity={shown(one) ? 1 : 0.35}
              />
            </svg>
            {one.name}
          </button>
        ))}
        {toggled.size > 0 && (
          <Button kind="quiet" className="min-h-7! py-0 text-[0.8rem]!" onClick={() => setToggled(new Set())}>
            Core only
          </Button>
        )}
      </div>
      <HiddenTable
        caption="Retention at each compression ratio"
        head={["Ratio", "Core mean", ...series.map((one) => one.name)]}
        rows={rows.map((row) => [times(row.ratio), percent(row.mean), ...series.map((one) => percent(row[one.key]))])}
      />
    </>
  );
}

/** A row per artifact, by ratio: the mean core retention and each benchmark's. The input keeps everything. */
export function qualityRows(view: Settled): Record<string, number | null>[] {
  const baseline = lastAttempt(view, BASELINE);
  if (baseline === null || Object.keys(baseline.results).length === 0) return [];
  const first: Record<string, number | null> = { ratio: 1, mean: 1 };
  for (const score of Object.values(baseline.results)) if (score.informative) first[score.task] = 1;
  const rows = [first];
  for (const stage of Object.values(view.stages)) {
    const attempt = telling(stage);
    if (stage.name === BASELINE || attempt === null || attempt.ratio === null) continue;
    if (Object.keys(attempt.results).length === 0) continue;
    const row: Record<string, number | null> = { ratio: attempt.ratio, mean: coreRetention(attempt).value };
    for (const score of Object.values(attempt.results)) row[score.task] = score.informative ? score.retention : null;
    rows.push(row);
  }
  return rows.sort((a, b) => (a.ratio as number) - (b.ratio as number));
}

export function ExpertRadar({ view }: { view: Settled }) {
  const experts = expertRetention(view);
  const stages = Object.keys(view.stages).filter(
    (name) => name !== BASELINE && experts.some((row) => row.byStage[name] != null),
  );
  if (experts.length === 0) return <Empty>No expert benchmarks in this run</Empty>;
  if (stages.length === 0) return <Empty>Drawn once a stage has been measured</Empty>;
  const rows = experts.map((row) => ({ expert: row.expert, ...row.byStage }));
  return (
    <>
      {experts.length > 2 && (
        <div className="keeps-colour h-64" aria-hidden="true">
          <ResponsiveContainer width="100%" height="100%" initialDimension={{ width: 320, height: 256 }}>
            <RadarChart data={rows} outerRadius="70%" accessibilityLayer={false}>
              <PolarGrid stroke="var(--line)" />
              <PolarAngleAxis dataKey="expert" tick={{ fill: "var(--ink)", fontSize: 12 }} />
              <PolarRadiusAxis
                domain={[0, 1]}
                tickCount={3}
                tickFormatter={(value: number) => `${Math.round(100 * value)}`}
                tick={{ fill: "var(--soft)", fontSize: 11 }}
                axisLine={false}
                angle={90 + 180 / rows.length} // between two experts, whose names stand at the ends
              />
              {stages.map((stage) => (
                <Radar
                  key={stage}
                  dataKey={stage}
                  name={stageTitle(stage, view.titles)}
                  stroke={stageColour(stage)}
                  fill={stageColour(stage)}
                  fillOpacity={0.12}
                  strokeWidth={2}
                  isAnimationActive={false}
                />
              ))}
              <Tooltip {...TIP} formatter={(value, name) => [percent(Number(value)), name]} />
            </RadarChart>
          </ResponsiveContainer>
        </div>
      )}
      <table className="mt-1 w-full text-[0.82rem]" data-figure="experts">
        <caption className="sr-only">Retention per expert and stage</caption>
        <thead>
          <tr className="text-soft">
            <th scope="col" className="py-0.5 text-left font-medium">
              Expert
            </th>
            {stages.map((stage) => (
              <th key={stage} scope="col" className="py-0.5 text-right font-medium">
                <span className="inline-flex items-center gap-1">
                  <StageMark stage={stage} />
                  {stageTitle(stage, view.titles)}
                </span>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {experts.map((row) => (
            <tr key={row.expert} data-expert={row.expert}>
              <th scope="row" className="py-0.5 text-left font-normal">
                {row.expert}
              </th>
              {stages.map((stage) => (
                <td key={stage} className="num py-0.5 text-right" data-stage={stage}>
                  {percent(row.byStage[stage])}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}
