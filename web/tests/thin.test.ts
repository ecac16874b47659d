/** A line of many points as one of few. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { thinned } from "../src/lib/thin";

const line = (count: number, at: (x: number) => number) =>
  Array.from({ length: count }, (_, x) => [x, at(x)] as [number, number]);

test("a short line stays as it is", () => {
  const points = line(200, (x) => x);
  assert.equal(thinned(points, 200), points);
});

test("a long line keeps its ends, its order and its spikes, and few points", () => {
  const points = line(10_000, (x) => (x === 4321 ? 9 : x === 7777 ? -9 : Math.sin(x / 50)));
  const kept = thinned(points, 200);
  assert.ok(kept.length <= 203, `${kept.length}`);
  assert.deepEqual([kept[0], kept.at(-1)], [points[0], points.at(-1)]);
  assert.deepEqual(
    kept,
    [...kept].sort((a, b) => a[0] - b[0]),
  );
  assert.ok(kept.some(([x, y]) => x === 4321 && y === 9));
  assert.ok(kept.some(([x, y]) => x === 7777 && y === -9));
  for (const point of kept) assert.deepEqual(point, points[point[0]]);
});
