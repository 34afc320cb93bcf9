/**
 * Promise 4 of docs/reliability.md: a daemon killed at any moment is told within a second by a typed error, delivered batches stay
 * intact, and resuming runs only the rest. `tests/faults/test_promise_04_daemon_killed.py` does it in Python, with real daemons.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { figure, rounds } from "./support/figures.js";
import { Client, ConnectionLostError } from "../src/index.js";
import type { Batch } from "../src/index.js";
import { check, collect, paths } from "./support/batches.js";
import { FAKE_COMMAND, NO_DAEMON, leaveNothing, useFolder, useJournal } from "./support/scene.js";

const KILLS = rounds({ push: 24, long: 500 });

/** Five within three minutes would be a loop of crashes. */
const KILLS_OF_A_CLIENT = 3;

const FRAMES = 600;
const BATCHES = FRAMES / 4;
const NOTICED_MS = 1_000;

const folder = useFolder();
const journal = useJournal(folder);
leaveNothing();

const options = { skip: NO_DAEMON, timeout: 3_600_000 };

function kill(): number {
  const pid = journal().pids.at(-1) ?? 0;
  process.kill(pid, "SIGKILL");
  return pid;
}

/** Kill at three batches by chance; the client resumes by itself. Returns how many were killed: two batches may come from one. */
async function resumed(): Promise<number> {
  const starts = journal().pids.length;
  await using client = new Client({ command: FAKE_COMMAND });
  const killed = new Set<number>();
  const at = new Set<number>();
  while (at.size < KILLS_OF_A_CLIENT) at.add(1 + Math.floor(Math.random() * (BATCHES - 2)));
  const batches = await collect(client.describe(paths(FRAMES)), ({ batch }) => {
    if (at.has(batch)) killed.add(kill());
  });
  check(batches, FRAMES);
  // The last one killed may have sent everything already.
  assert.ok([killed.size, killed.size + 1].includes(journal().pids.length - starts));
  return killed.size;
}

/** Kill at any moment; the loss is told, and the rest asked for as another job. Returns how long the telling took. */
async function told(): Promise<number> {
  await using client = new Client({ command: FAKE_COMMAND, resume: false });
  await client.hello();
  const got: Batch[] = [];
  let killedMs = 0;
  const timer = setTimeout(() => {
    killedMs = performance.now();
    kill();
  }, Math.random() * 300);
  const lost = await collect(client.describe(paths(FRAMES)), (batch) => got.push(batch)).then(
    () => undefined,
    (error: unknown) => error,
  );
  const tookMs = performance.now() - killedMs;
  clearTimeout(timer);
  assert.ok(lost instanceof ConnectionLostError, String(lost));
  const delivered = got.flatMap((batch) => batch.results.map((frame) => frame.index));
  assert.deepEqual(delivered, paths(delivered.length).map((_, at) => at));
  const rest = await client.describeAll(paths(FRAMES).slice(delivered.length));
  assert.equal(delivered.length + rest.length, FRAMES);
  return tookMs;
}

test("a daemon killed at random points", options, async () => {
  journal().faults({ pause_s: 0.003 });
  let kills = 0;
  let noticedMs = 0;
  while (kills < KILLS) {
    kills += await resumed();
    noticedMs = Math.max(noticedMs, await told());
    kills += 1;
    await journal().end(); // each daemon reads all of it with every batch
  }
  figure("4", { typescript_kills: kills, typescript_noticed_within_ms: Math.round(noticedMs), typescript_lost: 0, typescript_twice: 0 });
  assert.ok(noticedMs < NOTICED_MS);
});
