/** A treemap of an artifact's bytes: a colour per section, a field per sort of tensor; and the same as a table. */
"use client";

import { ResponsiveContainer, Treemap } from "recharts";

import type { Node } from "@/lib/api";
import { integer, percent, size } from "@/lib/format";
import { stageColour } from "@/lib/stages";

interface Field {
  name: string;
  bytes: number;
  shade: number;
  section: string;
  [key: string]: unknown;
}

export function Bytes({ tree, stage }: { tree: Node; stage: string }) {
  const sections = tree.children.length > 0 ? [...tree.children].sort((a, b) => b.bytes - a.bytes) : [tree];
  const fields: Field[] = sections.flatMap((section, index) => {
    const shade = Math.max(18, 88 - (70 * index) / Math.max(1, sections.length - 1));
    const parts = section.children.length > 0 ? section.children : [section];
    return parts.map((part) => ({ name: part.name, bytes: part.bytes, shade, section: section.name }));
  });
  const data = sections.map((section) => ({
    name: section.name,
    children: fields.filter((field) => field.section === section.name && field.bytes > 0),
  }));
  return (
    <div className="grid gap-4 lg:grid-cols-[3fr_2fr]">
      <div className="keeps-colour h-80" aria-hidden="true">
        <ResponsiveContainer width="100%" height="100%" initialDimension={{ width: 320, height: 320 }}>
          <Treemap
            data={data}
            dataKey="bytes"
            nameKey="name"
            isAnimationActive={false}
            content={(box) => <Box {...(box as BoxProps)} colour={stageColour(stage)} />}
          />
        </ResponsiveContainer>
      </div>
      <div className="max-h-80 overflow-auto" tabIndex={0} role="region" aria-label="Bytes by section">
        <table className="w-full border-separate border-spacing-0 text-[0.85rem]">
          <caption className="sr-only">Bytes of every section and sort of tensor; they add up to the file</caption>
          <thead className="sticky top-0 bg-card">
            <tr className="text-soft">
              <th scope="col" className="cell text-left font-medium">
                Part
              </th>
              <th scope="col" className="cell text-right font-medium">
                Bytes
              </th>
              <th scope="col" className="cell text-right font-medium">
                Share
              </th>
            </tr>
          </thead>
          <tbody>
            {sections.map((section, index) => [
              <tr key={section.name} data-section={section.name}>
                <th scope="row" className="cell text-left font-semibold">
                  <span
                    className="keeps-colour mr-1.5 inline-block size-2.5 rounded-[3px]"
                    style={{
                      background: mix(
                        stageColour(stage),
                        Math.max(18, 88 - (70 * index) / Math.max(1, sections.length - 1)),
                      ),
                    }}
                    aria-hidden="true"
                  />
                  {section.name}
                </th>
                <td className="cell num text-right font-semibold">{integer(section.bytes)}</td>
                <td className="cell num text-right">{percent(section.bytes / tree.bytes)}</td>
              </tr>,
              ...section.children.map((part) => (
                <tr key={`${section.name} ${part.name}`} className="text-soft">
                  <th scope="row" className="cell pl-6! text-left font-normal">
                    {part.name}
                  </th>
                  <td className="cell num text-right">{integer(part.bytes)}</td>
                  <td className="cell num text-right">{percent(part.bytes / tree.bytes)}</td>
                </tr>
              )),
            ])}
          </tbody>
          <tfoot>
            <tr>
              <th scope="row" className="cell text-left font-semibold">
                Whole file
              </th>
              <td className="cell num text-right font-semibold" data-figure="bytes">
                {integer(tree.bytes)}
              </td>
              <td className="cell num text-right">{percent(1)}</td>
            </tr>
          </tfoot>
        </table>
      </div>
    </div>
  );
}

interface BoxProps {
  x: number;
  y: number;
  width: number;
  height: number;
  depth: number;
  name: string;
  bytes?: number;
  shade?: number;
  section?: string;
}

function mix(colour: string, share: number): string {
  return `color-mix(in oklab, ${colour} ${share.toFixed(0)}%, var(--card))`;
}

function Box({ x, y, width, height, depth, name, bytes, shade, section, colour }: BoxProps & { colour: string }) {
  if (depth !== 2 || bytes === undefined) return <g />;
  const words = width > 8 * name.length && height > 20;
  return (
    <g>
      <rect
        x={x}
        y={y}
        width={width}
        height={height}
        rx={2}
        fill={mix(colour, shade ?? 50)}
        stroke="var(--card)"
        strokeWidth={1.5}
      >
        <title>{`${section}: ${name}, ${size(bytes)}`}</title>
      </rect>
      {words && (
        <>
          <rect x={x + 4} y={y + 4} width={7 * name.length + 8} height={17} rx={3} fill="var(--card)" opacity={0.85} />
          <text x={x + 8} y={y + 16} fontSize={12} fill="var(--ink)">
            {name}
          </text>
          {height > 42 && width > 62 && (
            <>
              <rect x={x + 4} y={y + 23} width={62} height={17} rx={3} fill="var(--card)" opacity={0.85} />
              <text x={x + 8} y={y + 35} fontSize={11} fill="var(--soft)">
                {size(bytes)}
              </text>
            </>
          )}
        </>
      )}
    </g>
  );
}
