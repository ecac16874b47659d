/** How figures and names are written for people: the same as in the terminal and the report (`wording.py`). */

export const NOTHING = "–";

/**
 * `digits` decimals, ties to the even neighbour as Python rounds them: of 16 items 13 are 81.2 %, where `toFixed` says
 * 81.3. A tie is a number of halves, so that its denominator is a power of two.
 */
export function fixed(value: number, digits: number): string {
  const scaled = value * 10 ** digits;
  if (!Number.isInteger(value * 2 ** (digits + 1)) || Number.isInteger(scaled)) return value.toFixed(digits);
  const below = Math.floor(scaled);
  return ((below % 2 === 0 ? below : below + 1) / 10 ** digits).toFixed(digits);
}

/** Bytes in decimal units: 2_104_332 -> `2.10 MB`. */
export function size(value: number | null | undefined): string {
  if (value == null) return NOTHING;
  for (const [unit, power] of [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ] as const) {
    if (Math.abs(value) >= power) return `${fixed(value / power, Math.abs(value) < 10 * power ? 2 : 1)} ${unit}`;
  }
  return `${fixed(value, 0)} B`;
}

/** A ratio: 8.04 -> `8.0×`, 128.4 -> `128×`. */
export function times(value: number | null | undefined): string {
  return value == null ? NOTHING : `${fixed(value, Math.abs(value) < 100 ? 1 : 0)}×`;
}

/** A fraction: 0.9714 -> `97.1 %`. */
export function percent(value: number | null | undefined, digits = 1): string {
  return value == null ? NOTHING : `${fixed(100 * value, digits)} %`;
}

/** A difference of fractions in points: -0.0123 -> `−1.2`. */
export function points(value: number | null | undefined): string {
  if (value == null) return NOTHING;
  const rounded = fixed(100 * value, 1);
  return rounded.startsWith("-") ? `−${rounded.slice(1)}` : `+${rounded}`;
}

/** A duration: 0.42 -> `0.4 s`, 75 -> `1 min 15 s`. */
export function seconds(value: number | null | undefined): string {
  if (value == null) return NOTHING;
  if (value < 9.95) return `${fixed(Math.max(0, value), 1)} s`;
  const whole = Number(fixed(value, 0));
  const two = (part: number) => String(part).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

export function integer(value: number | null | undefined): string {
  return value == null ? NOTHING : Math.round(value).toLocaleString("en-GB");
}

/** Any figure to four significant digits; text and truth values as they are. */
export function figure(value: unknown): string {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value == null) return NOTHING;
  if (Array.isArray(value)) return value.map(figure).join(", ") || "none";
  if (typeof value === "object") return settings(value as Record<string, unknown>);
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return NOTHING;
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  if (Math.abs(value) >= 1e4) return Math.round(value).toLocaleString("en-GB");
  return Number(value.toPrecision(4)).toString();
}

/** Adjustments on one line: `seedlm.bits=5, calibration.samples=64`. */
export function settings(values: Record<string, unknown>): string {
  return (
    Object.entries(values)
      .map(([name, value]) => `${name}=${figure(value)}`)
      .join(", ") || "nothing"
  );
}

/** A name for people: `core_retention` -> `core retention`. */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}

const SHORT: Record<string, string> = {
  mmlu: "MMLU",
  gsm8k: "GSM8K",
  humaneval: "HumanEval",
  hellaswag: "HellaSwag",
  arc: "ARC",
  arc_challenge: "ARC-Challenge",
  truthfulqa: "TruthfulQA",
  winogrande: "WinoGrande",
  math: "MATH",
  storycloze: "StoryCloze",
  mbpp: "MBPP",
  lambada: "LAMBADA",
  squad: "SQuAD",
  triviaqa: "TriviaQA",
  edge_of_chaos: "Edge of chaos",
  eudaimonia: "Eudaimonia",
};

/** A benchmark for people: `mini_mmlu` -> `MMLU`; the mini suite's prefix is said once, above the table. */
export function benchmark(task: string): string {
  const name = task.replace(/^mini_/, "");
  return SHORT[name] ?? words(name);
}

export function clock(time: number): string {
  return new Date(time * 1000).toLocaleTimeString("en-GB");
}

export function moment(time: number | null | undefined): string {
  if (time == null) return NOTHING;
  const date = new Date(time * 1000);
  const day = `${date.getFullYear()}-${String(date.getMonth() + 1).padStart(2, "0")}-${String(date.getDate()).padStart(2, "0")}`;
  return `${day} ${date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })}`;
}
