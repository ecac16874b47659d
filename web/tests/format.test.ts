/** Figures are written as in the terminal (`phase8/watch/wording.py`, whose docstrings hold the same examples). */
import assert from "node:assert/strict";
import { test } from "node:test";

import { figure, fixed, percent, points, seconds, settings, size, times } from "../src/lib/format";

test("sizes, ratios, shares, durations", () => {
  assert.equal(size(2_104_332), "2.10 MB");
  assert.equal(size(62_928), "62.9 kB");
  assert.equal(size(null), "–");
  assert.equal(times(8.04), "8.0×");
  assert.equal(times(128.4), "128×");
  assert.equal(percent(0.9714), "97.1 %");
  assert.equal(points(-0.0123), "−1.2");
  assert.equal(seconds(0.42), "0.4 s");
  assert.equal(seconds(75), "1 min 15 s");
  assert.equal(seconds(7322), "2 h 02 min");
});

test("ties go to the even neighbour, as in Python", () => {
  assert.equal(percent(13 / 16), "81.2 %");
  assert.equal(percent(15 / 16), "93.8 %");
  assert.equal(percent(-13 / 16), "-81.2 %");
  assert.equal(fixed(0.615, 2), "0.61"); // below 0.615 in binary: no tie
  assert.equal(fixed(2.5, 0), "2");
  assert.equal(fixed(1e300, 1), (1e300).toFixed(1));
  assert.equal(seconds(12.5), "12 s");
});

test("any figure", () => {
  assert.equal(figure(true), "yes");
  assert.equal(figure(0.123456), "0.1235");
  assert.equal(figure(512), "512");
  assert.equal(figure([]), "none");
  assert.equal(figure(Number.NaN), "–");
  assert.equal(settings({ "seedlm.bits": 5 }), "seedlm.bits=5");
  assert.equal(settings({}), "nothing");
});
