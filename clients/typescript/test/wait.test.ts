/** The clock of deadlines: it stands still while this process cannot run. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { AwakeClock, Wake, nowMs } from "../src/wait.js";

test("a pause does not count, and is counted once by all who wait", () => {
  let timeMs = 1_000;
  const clock = new AwakeClock(() => timeMs);
  const first = clock.began(1_000);
  const second = clock.began(500);
  timeMs += 8 * 3_600_000; // a night
  first();
  second();
  assert.equal(clock.nowMs(), 2_000);
});

test("a late wake-up is no pause", () => {
  let timeMs = 1_000;
  const clock = new AwakeClock(() => timeMs);
  const ended = clock.began(1_000);
  timeMs += 2_000;
  ended();
  assert.equal(clock.nowMs(), 3_000);
});

test("a long wait comes in pieces, between which the clock is looked at", async () => {
  const beganMs = nowMs();
  const host = setTimeout(() => undefined, 20_000); // a wait alone does not keep the host alive
  await new Wake().wait(beganMs + 60_000);
  clearTimeout(host);
  assert.ok(nowMs() - beganMs > 900 && nowMs() - beganMs < 15_000);
});
