/** Part 8: edge of chaos on its band, and the four rules with their thresholds. */
"use client";

import { Empty, StageName } from "@/components/basics";
import { edgeOfChaos, rules, telling } from "@/lib/derive";
import { fixed, percent } from "@/lib/format";
import { BASELINE, stageColour } from "@/lib/stages";
import type { Attempt, Check, Settled } from "@/lib/store";

function verdict(check: Check | null): [string, string] {
  if (check === null) return ["", "text-soft"];
  if (check.passed === null) return ["not judged", "text-soft"];
  return check.passed ? ["holds", "text-good"] : ["fails", "text-poor"];
}

export function Integration({ view }: { view: Settled }) {
  const measured = Object.values(view.stages)
    .map((stage) => ({ stage: stage.name, attempt: telling(stage) }))
    .filter(
      (row): row is { stage: string; attempt: Attempt } =>
        row.attempt !== null && edgeOfChaos(row.attempt).score !== null,
    );
  const withRules = measured.filter(({ attempt }) => rules(attempt).some((rule) => rule.value !== null));
  if (measured.length === 0) return <Empty>The integration tests come after the benchmarks</Empty>;
  const { edgeLow, edgeHigh } = view.limits;
  return (
    <div className="flex flex-col gap-4">
      <div>
        <h3 className="mb-2 text-[0.85rem] font-medium">
          Edge of chaos{" "}
          <span className="font-normal text-soft">
            accuracy, band {percent(edgeLow, 0)} to {percent(edgeHigh, 0)}
          </span>
        </h3>
        <ul className="space-y-1.5">
          {measured.map(({ stage, attempt }) => {
            const { score, check } = edgeOfChaos(attempt);
            const [word, tone] = verdict(check);
            return (
              <li
                key={stage}
                data-stage={stage}
                className="grid grid-cols-[5.2rem_1fr_auto] items-center gap-2.5 text-[0.85rem]"
              >
                <StageName stage={stage} titles={view.titles} />
                <Scale value={score?.score ?? null} low={edgeLow} high={edgeHigh} colour={stageColour(stage)} />
                <span className="num text-right">
                  <span data-figure="edge">{percent(score?.score)}</span>{" "}
                  <span className={`inline-block min-w-12 ${tone}`}>{word}</span>
                </span>
              </li>
            );
          })}
        </ul>
      </div>
      <div>
        <h3 className="mb-1 text-[0.85rem] font-medium">
          Eudaimonia <span className="font-normal text-soft">score of each rule</span>
        </h3>
        {withRules.length === 0 ? (
          <p className="text-[0.85rem] text-soft">Not measured</p>
        ) : (
          <div className="overflow-x-auto" tabIndex={0} role="region" aria-label="Rules by stage">
            <table className="w-full text-[0.85rem]">
              <caption className="sr-only">Score of the four rules per stage</caption>
              <thead>
                <tr className="text-soft">
                  <th scope="col" className="py-1 text-left font-medium">
                    Rule
                  </th>
                  {withRules.map(({ stage }) => (
                    <th key={stage} scope="col" className="py-1 pl-2 text-right font-medium">
                      <StageName stage={stage} titles={view.titles} />
                    </th>
                  ))}
                </tr>
              </thead>
              <tbody>
                {rules(withRules[0]?.attempt ?? null).map(({ rule }) => (
                  <tr key={rule} data-rule={rule}>
                    <th scope="row" className="py-1 text-left font-normal first-letter:uppercase">
                      {rule}
                    </th>
                    {withRules.map(({ stage, attempt }) => {
                      const found = rules(attempt).find((one) => one.rule === rule);
                      const limit = found?.check?.threshold ?? view.limits.rule[stage] ?? null;
                      const [word, tone] = verdict(found?.check ?? null);
                      return (
                        <td key={stage} data-stage={stage} className="py-1 pl-2 text-right">
                          <span className={`num ${word === "fails" ? tone : ""}`} data-figure="rule">
                            {found?.value == null ? "–" : fixed(found.value, 3)}
                          </span>
                          <RuleBar
                            value={found?.value ?? null}
                            limit={stage === BASELINE ? null : limit}
                            colour={stageColour(stage)}
                          />
                          {word === "fails" && <span className="sr-only">fails</span>}
                        </td>
                      );
                    })}
                  </tr>
                ))}
              </tbody>
              <tfoot>
                <tr className="text-[0.78rem] text-soft">
                  <th scope="row" className="pt-1 text-left font-normal">
                    Threshold
                  </th>
                  {withRules.map(({ stage }) => (
                    <td key={stage} className="num pt-1 pl-2 text-right">
                      {stage === BASELINE ? "–" : (view.limits.rule[stage]?.toFixed(2) ?? "–")}
                    </td>
                  ))}
                </tr>
              </tfoot>
            </table>
          </div>
        )}
      </div>
    </div>
  );
}

/** A scale from 0 to 100 % with the band that passes, and a mark. */
function Scale({ value, low, high, colour }: { value: number | null; low: number; high: number; colour: string }) {
  return (
    <div className="keeps-colour relative h-3.5 rounded bg-raised" aria-hidden="true">
      <div
        className="absolute inset-y-0 border-x border-good bg-good/25"
        style={{ left: `${100 * low}%`, width: `${100 * (high - low)}%` }}
      />
      {value !== null && (
        <div
          className="absolute -inset-y-0.5 w-1 -translate-x-1/2 rounded-sm"
          style={{ left: `${100 * value}%`, background: colour }}
        />
      )}
    </div>
  );
}

function RuleBar({ value, limit, colour }: { value: number | null; limit: number | null; colour: string }) {
  return (
    <div
      className="keeps-colour relative mt-0.5 ml-auto h-1 max-w-24 min-w-10 rounded-full bg-raised"
      aria-hidden="true"
    >
      {value !== null && (
        <div className="h-full rounded-full" style={{ width: `${100 * Math.min(1, value)}%`, background: colour }} />
      )}
      {limit !== null && <div className="absolute -inset-y-0.5 w-0.5 bg-ink" style={{ left: `${100 * limit}%` }} />}
    </div>
  );
}
