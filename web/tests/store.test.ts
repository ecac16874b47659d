/** The reducer: a page that opens late and one that was there all the time know the same. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { answer, coreRetention, expertRetention, stageState } from "../src/lib/derive";
import { curveKey, EMPTY, fold, sameSettled, type RunView } from "../src/lib/store";
import type { RunEvent } from "../src/lib/types";

/** A run in which VPTQ fails and passes at its second try; as the events' contract has it. */
function log(): RunEvent[] {
  const events: RunEvent[] = [];
  const say = (kind: string, stage: string | null, data: Record<string, unknown> = {}) => {
    events.push({ seq: events.length, time: 1000 + events.length, kind, stage, data });
  };
  const work = (stage: string, step: string, count: number) => {
    for (let done = 1; done <= count; done += 1) say("activity", stage, { step, done, total: count, text: `${done}` });
    say("step_complete", stage, { step, seconds: 2 });
  };
  const scores = (stage: string, attempt: number, kept: number) => {
    for (const [task, role, experts] of [
      ["a", "core", []],
      ["b", "core", ["code"]],
      ["c", "expert", ["code"]],
    ] as const) {
      const retention = stage === "baseline" ? {} : { retention: kept, retention_interval: [kept - 0.1, kept + 0.1] };
      say("benchmark_result", stage, {
        task,
        role,
        experts,
        score: 0.8 * kept,
        n: 40,
        chance: 0.25,
        informative: true,
        attempt,
        ...retention,
      });
    }
  };
  say("log_start", null, { version: 2 });
  say("run_start", null, {
    model: "m",
    compressor: "default",
    original_bytes: 4000,
    parameters: 1000,
    stages: ["seedlm", "vptq"],
    limits: { cumulative_retention: 0.9 },
  });
  say("stage_start", "baseline", { attempt: 1 });
  work("baseline", "evaluate", 5);
  scores("baseline", 1, 1);
  say("stage_complete", "baseline", { passed: true, seconds: 4 });
  for (const [stage, attempt, kept, passed, final] of [
    ["seedlm", 1, 0.99, true, true],
    ["vptq", 1, 0.7, false, false],
    ["vptq", 2, 0.95, true, true],
  ] as const) {
    if (attempt > 1) say("retry_start", stage, { attempt, adjustments: { "vptq.codebook_size": 512 } });
    say("stage_start", stage, { attempt });
    work(stage, "encode", 20);
    for (let step = 1; step <= 10; step += 1)
      say("training_progress", stage, { attempt, step, steps: 10, loss: 1 / step });
    say("compression_progress", stage, {
      attempt,
      compressed_bytes: 400,
      original_bytes: 4000,
      ratio: 10,
      bits_per_weight: 3.2,
      groups: { q_proj: 400 },
    });
    scores(stage, attempt, kept);
    say("quality_gate", stage, {
      attempt,
      passed,
      abort: null,
      checks: [{ name: "core_retention_cumulative", value: kept, threshold: 0.9, passed }],
    });
    say("stage_complete", stage, { attempt, passed, final, seconds: 9, artifact: `/x/${stage}` });
  }
  say("log", null, { level: "info", text: "done" });
  say("phase_complete", null, {
    success: false,
    compression_level: "vptq",
    seconds: 60,
    metrics: { expert_retention: { code: 0.95 } },
  });
  return events;
}

/** What the server leaves out for a page that opens late: all but the last activity of a stage's step. */
function compacted(events: RunEvent[]): RunEvent[] {
  const last = new Map<string, number>();
  for (const event of events) if (event.kind === "activity") last.set(`${event.stage} ${event.data.step}`, event.seq);
  return events.filter(
    (event) => event.kind !== "activity" || last.get(`${event.stage} ${event.data.step}`) === event.seq,
  );
}

function folded(events: RunEvent[], size: number): RunView {
  let view = EMPTY;
  for (let start = 0; start < events.length; start += size) view = fold(view, events.slice(start, start + size));
  return view;
}

test("a late snapshot gives the state of the live stream, at every moment of the run", () => {
  const events = log();
  for (let length = 1; length <= events.length; length += 1) {
    const sofar = events.slice(0, length);
    assert.deepEqual(fold(EMPTY, compacted(sofar)), folded(sofar, 1), `after ${length} events`);
  }
});

test("a snapshot and the rest of the stream give the whole", () => {
  const events = log();
  const whole = folded(events, 1);
  for (const cut of [1, 17, 60, events.length - 1]) {
    assert.deepEqual(fold(fold(EMPTY, compacted(events.slice(0, cut))), events.slice(cut)), whole);
  }
});

test("batches of any size give the same", () => {
  const events = log();
  const whole = folded(events, 1);
  for (const size of [2, 7, 50, 10_000]) assert.deepEqual(folded(events, size), whole);
});

test("events that come twice change nothing", () => {
  const events = log();
  const whole = folded(events, 13);
  assert.equal(fold(whole, events), whole);
  assert.deepEqual(fold(fold(EMPTY, events.slice(0, 80)), events.slice(40)), whole);
});

test("an earlier view stays as it was", () => {
  const events = log();
  const early = fold(EMPTY, events.slice(0, 60));
  const copy = structuredClone(early);
  fold(early, events);
  assert.deepEqual(early, copy);
  assert.equal(EMPTY.log.length, 0);
});

test("the figures of attempts, stages and experts", () => {
  const view = folded(log(), 5);
  assert.equal(stageState(view, "baseline"), "complete");
  assert.equal(stageState(view, "vptq"), "complete");
  assert.equal(stageState(view, "hyper"), "off");
  assert.equal(view.stages.vptq?.attempts.length, 2);
  assert.deepEqual(view.stages.vptq?.attempts[1]?.adjustments, { "vptq.codebook_size": 512 });
  assert.equal(answer(view)?.attempt.number, 2);
  assert.equal(coreRetention(answer(view)?.attempt ?? null).value, 0.95);
  assert.deepEqual(expertRetention(view), [{ expert: "code", byStage: { seedlm: 0.99, vptq: 0.95 } }]);
  assert.equal(view.limits.cumulative, 0.9);
  assert.equal(view.limits.benchmark, 0.8);
});

test("a run that goes on after an abort begins its unfinished attempt anew", () => {
  const events = log();
  const cut = events.findIndex((event) => event.kind === "training_progress" && event.stage === "vptq") + 5;
  const view = fold(EMPTY, events.slice(0, cut));
  const more: RunEvent[] = [
    ["aborted", null, { by: "control", reason: "enough" }],
    ["phase_complete", null, { interrupted: true }],
    ["run_resumed", null, { process: 2 }],
    ["stage_start", "vptq", { attempt: 1 }],
    ["training_progress", "vptq", { attempt: 1, step: 3, steps: 10, loss: 0.3 }],
  ].map(([kind, stage, data], index) => ({ seq: cut + index, time: 2000 + index, kind, stage, data }) as RunEvent);
  const over = fold(view, more.slice(0, 2));
  assert.equal(over.aborted?.reason, "enough");
  assert.notEqual(over.result, null);
  const again = fold(over, more.slice(2));
  assert.equal(again.aborted, null);
  assert.equal(again.result, null);
  assert.equal(again.current, "vptq");
  assert.deepEqual(
    again.curves[curveKey("vptq", 1)]?.map((point) => point.step),
    [1, 2, 3],
  );
});

test("progress, training and lines leave alone what the slow parts of the page draw", () => {
  const events = log();
  const cut = events.findIndex((event) => event.kind === "training_progress" && event.stage === "vptq");
  const view = fold(EMPTY, events.slice(0, cut));
  const more = (...told: [string, Record<string, unknown>][]) =>
    fold(
      view,
      told.map(([kind, data], index) => ({ seq: cut + index, time: 2000 + index, kind, stage: "vptq", data })),
    );
  const after = more(
    ["activity", { step: "encode", done: 1, total: 2 }],
    ["training_progress", { attempt: 1, step: 1, steps: 2, loss: 1 }],
    ["log", { level: "info", text: "a line" }],
  );
  assert.equal(after.log.length, view.log.length + 1);
  assert.equal(after.curves[curveKey("vptq", 1)]?.length, 1);
  assert.ok(sameSettled(view, after));
  assert.ok(!sameSettled(view, more(["stage_complete", { attempt: 1, passed: true, seconds: 1 }])));
  assert.ok(!sameSettled(view, more(["paused", { step: "encode" }])));
});

test("events of unknown kinds and with odd data do no harm", () => {
  const odd: RunEvent[] = [
    { seq: 0, time: 1, kind: "from_the_future", stage: "vptq", data: { attempt: "two" } },
    { seq: 1, time: 2, kind: "quality_gate", stage: "vptq", data: { checks: "none" } },
    { seq: 2, time: 3, kind: "benchmark_result", stage: "vptq", data: { score: "high", retention_interval: [1] } },
    { seq: 3, time: 4, kind: "run_start", stage: null, data: { stages: null, limits: [] } },
  ];
  const view = fold(EMPTY, odd);
  assert.equal(view.next, 4);
  assert.equal(view.log.length, 4);
  assert.equal(view.stages.vptq?.attempts[0]?.gate?.passed, false);
});

test("ten thousand events in batches of a frame take the reducer little", () => {
  const many: RunEvent[] = Array.from({ length: 10_000 }, (_, seq) =>
    seq % 3 === 0
      ? { seq, time: seq, kind: "activity", stage: "vptq", data: { step: "encode", done: seq, total: 10_000 } }
      : { seq, time: seq, kind: "log", stage: null, data: { level: "info", text: `line ${seq}` } },
  );
  const view = folded(many, 200);
  assert.equal(view.log.length, many.filter((event) => event.kind === "log").length);
  assert.equal(view.activity?.done, 9999);
});
