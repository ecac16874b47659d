/** The stages' names and colours; the colours themselves stand in `globals.css`, the same as in report and terminal. */

export const BASELINE = "baseline";

const TITLES: Record<string, string> = { baseline: "Baseline", seedlm: "SeedLM", vptq: "VPTQ", hyper: "Hyper" };
const COLOURED = new Set(["baseline", "seedlm", "vptq", "hyper"]);

/** A stage for people; `titles` are the run's own names. */
export function stageTitle(stage: string, titles: Record<string, string> = {}): string {
  return titles[stage] ?? TITLES[stage] ?? stage.replaceAll("_", " ");
}

/** The accent colour of a stage, as CSS. */
export function stageColour(stage: string): string {
  return `var(--${COLOURED.has(stage) ? stage : "other"})`;
}

/** The stage that a compression level of `result.json` stands for; null for the input model. */
export function stageOfLevel(level: string | null): string | null {
  if (level === null || level === "" || level === "phase7_fallback") return null;
  return level === "hypercompression" ? "hyper" : level;
}

export function levelTitle(level: string | null): string {
  const stage = stageOfLevel(level);
  return stage === null ? "input model" : stageTitle(stage);
}
