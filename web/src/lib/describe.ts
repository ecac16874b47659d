/** Every event in a sentence for people, with a tone for its mark and a class for the log's filter. */
import { figure, benchmark, percent, seconds, settings, size, times, words } from "./format";
import { list, num, obj, text } from "./read";
import { levelTitle, stageTitle } from "./stages";
import type { RunEvent } from "./types";

export type Tone = "plain" | "good" | "fair" | "poor";
export type Sort = "gate" | "retry" | "problem" | "score" | "step";

export interface Described {
  title: string;
  tone: Tone;
  sort: Sort;
}

export function describe(event: RunEvent, titles: Record<string, string> = {}): Described {
  const data = event.data;
  const stage = event.stage === null ? "Run" : stageTitle(event.stage, titles);
  const attempt = num(data.attempt);
  const which = attempt !== null && attempt > 1 ? `${stage}, attempt ${attempt}` : stage;
  const said = (title: string, tone: Tone, sort: Sort): Described => ({ title, tone, sort });
  switch (event.kind) {
    case "run_start":
      return said(
        `Run begins: ${text(data.model)}, ${size(num(data.original_bytes))} in FP32, compressor ${text(data.compressor)}`,
        "plain",
        "step",
      );
    case "run_resumed":
      return said(`Run goes on (process ${figure(data.process)})`, "good", "step");
    case "stage_start":
      return said(`${which} begins`, "plain", "step");
    case "step_complete":
      return said(`${which}: ${words(text(data.step))} done in ${seconds(num(data.seconds))}`, "plain", "step");
    case "compression_progress":
      return said(
        `${which}: ${size(num(data.compressed_bytes))}, ratio ${times(num(data.ratio))}, ${figure(num(data.bits_per_weight))} bits per weight`,
        "plain",
        "step",
      );
    case "allocation":
      return said(
        `${which}: ${text(data.limit)} allows ${size(num(data.budget_bytes))}, encoded into ${size(num(data.size_bytes))}`,
        "plain",
        "step",
      );
    case "training_progress":
      return said(
        `${which}: training step ${figure(data.step)} of ${figure(data.steps)}, loss ${figure(data.loss)}`,
        "plain",
        "step",
      );
    case "training_restart":
      return said(`${which}: training begins again without the filter`, "fair", "step");
    case "training_complete":
      return said(
        `${which}: held-out loss ${figure(num(data.held_out_before))} to ${figure(num(data.held_out_after))}${data.kept === false ? ", not kept" : ""}`,
        "plain",
        "step",
      );
    case "benchmark_result": {
      const retention = num(data.retention);
      const kept = retention === null ? "" : `, ${percent(retention)} kept`;
      return said(`${which}: ${benchmark(text(data.task))} ${percent(num(data.score))}${kept}`, "plain", "score");
    }
    case "quality_gate": {
      const checks = list(data.checks).map(obj);
      const failed = checks.filter((check) => check.passed === false).map((check) => words(text(check.name)));
      const passed = data.passed === true;
      const more = failed.length > 2 ? `, ${failed.length - 2} more` : "";
      const why = failed.length === 0 ? "" : `: ${failed.slice(0, 2).join(", ")}${more}`;
      return said(`${which}: gate ${passed ? "passed" : `failed${why}`}`, passed ? "good" : "poor", "gate");
    }
    case "recommendation":
      return said(`${which}: ${words(text(data.action))}: ${text(data.reason)}`, "fair", "retry");
    case "retry_start":
      return said(`${stage}: trying once more with ${settings(obj(data.adjustments))}`, "fair", "retry");
    case "stage_complete": {
      const passed = data.passed === true;
      const verdict = passed ? "done" : data.final === false ? "attempt not kept" : "not kept";
      return said(
        `${which}: ${verdict}, ${seconds(num(data.seconds))}`,
        passed ? "good" : data.final === false ? "fair" : "poor",
        "gate",
      );
    }
    case "log": {
      const level = text(data.level);
      const tone = level === "error" ? "poor" : level === "warning" ? "fair" : "plain";
      return said(text(data.text), tone, tone === "plain" ? "step" : "problem");
    }
    case "paused":
      return said(`Paused${text(data.reason) && `: ${text(data.reason)}`}`, "fair", "retry");
    case "resumed":
      return said(`Goes on after ${seconds(num(data.paused_s))}`, "good", "retry");
    case "aborted":
      return said(`Aborted${text(data.reason) && `: ${text(data.reason)}`}`, "poor", "problem");
    case "failed":
      return said(`Error: ${text(data.what)}`, "poor", "problem");
    case "phase_complete": {
      const success = data.success === true;
      return said(
        `Run ends at ${levelTitle(text(data.compression_level))}: ${success ? "success" : "not a success"}`,
        success ? "good" : "fair",
        "gate",
      );
    }
    default:
      return said(`${which}: ${words(event.kind)}`, "plain", "step");
  }
}
