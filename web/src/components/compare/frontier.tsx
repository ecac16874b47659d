/** Every attempt of every run: ratio against core retention, with intervals and the line of those not beaten. */
"use client";

import {
  CartesianGrid,
  ErrorBar,
  ReferenceLine,
  ResponsiveContainer,
  Scatter,
  ScatterChart,
  Tooltip,
  XAxis,
  YAxis,
} from "recharts";

import { Empty, HiddenTable } from "@/components/basics";
import type { FrontierPoint } from "@/lib/api";
import { percent, size, times } from "@/lib/format";
import { pair } from "@/lib/read";
import { stageColour, stageTitle } from "@/lib/stages";

type Point = FrontierPoint & { spread: [number, number] | undefined; letter: string };

export function Frontier({ points, letters }: { points: FrontierPoint[]; letters: Record<string, string> }) {
  const known: Point[] = points
    .filter((point) => point.ratio > 0)
    .map((point) => {
      const bounds = pair(point.core_retention_interval);
      const spread: [number, number] | undefined =
        bounds === null ? undefined : [point.core_retention - bounds[0], bounds[1] - point.core_retention];
      return { ...point, letter: letters[point.run] ?? "?", spread };
    });
  if (known.length === 0) return <Empty>None of these runs has measured a stage yet</Empty>;
  const line = known.filter((point) => point.on_frontier).sort((a, b) => a.ratio - b.ratio);
  const high = Math.max(...known.map((point) => point.ratio)) * 1.6;
  const low = Math.min(...known.map((point) => point.ratio)) / 1.4;
  // Runs may ask for different retentions: a line for each.
  const thresholds = [...new Set(known.map((point) => point.threshold))].filter((value) => value !== null);
  const bottom = Math.max(0, Math.floor(Math.min(0.8, ...known.map((point) => point.core_retention)) * 10 - 0.4) / 10);
  const ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter((tick) => tick >= low && tick <= high);
  const tick = { fill: "var(--soft)", fontSize: 12 };
  return (
    <>
      <div className="keeps-colour h-80" aria-hidden="true">
        <ResponsiveContainer width="100%" height="100%" initialDimension={{ width: 320, height: 320 }}>
          <ScatterChart margin={{ top: 8, right: 16, bottom: 16, left: 0 }} accessibilityLayer={false}>
            <CartesianGrid stroke="var(--line)" />
            <XAxis
              dataKey="ratio"
              type="number"
              scale="log"
              domain={[low, high]}
              ticks={ticks}
              allowDataOverflow
              tickFormatter={(value: number) => `${value}×`}
              tick={tick}
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
              dataKey="core_retention"
              type="number"
              domain={[bottom, 1.05]}
              allowDataOverflow
              tickFormatter={(value: number) => `${Math.round(100 * value)} %`}
              tick={tick}
              tickLine={false}
              axisLine={false}
              width={48}
            />
            {thresholds.map((threshold) => (
              <ReferenceLine
                key={threshold}
                y={threshold}
                stroke="var(--poor)"
                strokeDasharray="5 4"
                label={{ value: percent(threshold), position: "insideBottomLeft", fill: "var(--poor)", fontSize: 12 }}
              />
            ))}
            <Tooltip content={Tip} cursor={{ stroke: "var(--line)" }} isAnimationActive={false} />
            <Scatter
              data={line}
              line={{ stroke: "var(--soft)", strokeWidth: 1.5 }}
              shape={() => <g />}
              isAnimationActive={false}
            />
            <Scatter data={known} shape={Dot} isAnimationActive={false}>
              <ErrorBar
                dataKey="spread"
                direction="y"
                width={0}
                stroke="var(--soft)"
                strokeWidth={1.5}
                isAnimationActive={false}
              />
            </Scatter>
          </ScatterChart>
        </ResponsiveContainer>
      </div>
      <HiddenTable
        caption="Ratio and core retention of every attempt"
        head={["Attempt", "Ratio", "Size", "Core retention", "Gate", "Frontier"]}
        rows={known.map((point) => [
          `${point.letter}, ${stageTitle(point.stage)}, attempt ${point.attempt}`,
          times(point.ratio),
          size(point.bytes),
          percent(point.core_retention),
          point.passed ? "passed" : "failed",
          point.on_frontier ? "yes" : "no",
        ])}
      />
    </>
  );
}

function Dot({ cx, cy, payload }: { cx?: number; cy?: number; payload?: Point }) {
  if (cx === undefined || cy === undefined || payload === undefined) return <g />;
  const colour = stageColour(payload.stage);
  return (
    <g>
      <circle cx={cx} cy={cy} r={8} fill={!payload.passed ? "var(--card)" : colour} stroke={colour} strokeWidth={2} />
      <text
        x={cx}
        y={cy + 3.5}
        textAnchor="middle"
        fontSize={10}
        fontWeight={700}
        fill={!payload.passed ? "var(--ink)" : "var(--card)"}
      >
        {payload.letter}
      </text>
    </g>
  );
}

function Tip({ payload }: { payload?: readonly { payload?: Point }[] }) {
  const point = payload?.find((entry) => entry.payload?.letter !== undefined)?.payload;
  if (point === undefined) return null;
  return (
    <div className="rounded-md border border-edge bg-card px-2.5 py-1.5 text-[0.82rem]">
      <p className="font-semibold">
        {point.letter} · {stageTitle(point.stage)}
        {point.attempt > 1 && `, attempt ${point.attempt}`}
      </p>
      <p className="num">
        {times(point.ratio)}, {size(point.bytes)}, {percent(point.core_retention)}
      </p>
      <p className="text-soft">{point.passed ? "gate passed" : "gate failed"}</p>
    </div>
  );
}
