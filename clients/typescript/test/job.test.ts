/** Frames to requests, lines to numbered batches, and what is asked for again. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Breaker, MAX_CRASHES, WINDOW_MS } from "../src/breaker.js";
import { InvalidRequestError, ProtocolError } from "../src/errors.js";
import { DescribeJob } from "../src/job.js";
import type { DescribeParams, FrameResult } from "../src/protocol.gen.js";
import type { Batch } from "../src/results.js";
import type { Batched } from "../src/session.js";

function frames(from: number, to: number): { ref: { imagePath: string; index: number }; spooled: boolean }[] {
  return Array.from({ length: to - from }, (_, at) => ({ ref: { imagePath: `/${from + at}`, index: from + at }, spooled: false }));
}

function line(requestId: number, from: number, to: number, done = false): Batched {
  const results = frames(from, to).map(
    ({ ref }): FrameResult => ({ ...ref, timestamp: null, description: "", activity: "", apps: [], topics: [] }),
  );
  return { type: "batched", requestId, results, progress: undefined, done };
}

function ask(job: DescribeJob, firstId: number): DescribeParams[] {
  const asked: DescribeParams[] = [];
  job.ask((params) => asked.push(params) + firstId - 1);
  return asked;
}

function drain(job: DescribeJob): Batch[] {
  const batches: Batch[] = [];
  for (let batch; (batch = job.take()) !== undefined; ) batches.push(batch);
  return batches;
}

test("after a loss only what was not delivered is asked for, numbers and progress go on", () => {
  const job = new DescribeJob({ batchSize: 4 }, 10);
  job.add(frames(0, 10));
  job.endInput();
  assert.deepEqual(ask(job, 1)[0]?.images.length, 10);
  job.receive(line(1, 0, 4));
  assert.deepEqual(drain(job).map((batch) => batch.batch), [1]);
  job.receive(line(1, 4, 8)); // received, and not yet taken: kept
  job.unask();
  const again = ask(job, 2);
  assert.deepEqual(again[0]?.images.map((image) => image.index), [8, 9]);
  job.receive(line(2, 8, 10, true));
  const rest = drain(job);
  assert.deepEqual(rest.map((batch) => [batch.batch, batch.progress.current, batch.done]), [[2, 8, false], [3, 10, true]]);
  assert.ok(job.finished);
});

test("a daemon that mixes up frames, or ends early, is not believed", () => {
  for (const bad of [line(1, 1, 3), line(1, 0, 3, true), line(1, 0, 11)]) {
    const job = new DescribeJob({}, undefined);
    job.add(frames(0, 10));
    ask(job, 1);
    assert.throws(() => job.receive(bad), ProtocolError);
  }
});

test("the last batch is held until its place is known", () => {
  const job = new DescribeJob({ batchSize: 2 }, undefined);
  job.add(frames(0, 2));
  ask(job, 1);
  job.receive(line(1, 0, 2, true));
  assert.ok(job.wantsPeek);
  assert.equal(job.take(), undefined);
  job.noteMore();
  assert.deepEqual([job.take()?.done, job.wantsChunk], [false, true]);
  job.add(frames(2, 4));
  ask(job, 2);
  job.receive(line(2, 2, 4, true));
  job.endInput();
  const last = job.take();
  assert.deepEqual([last?.done, last?.progress], [true, { current: 4, total: 4 }]);
});

test("input is taken a bounded way ahead", () => {
  const job = new DescribeJob({ batchSize: 4 }, undefined);
  assert.equal(job.chunkFrames, 256);
  job.add(frames(0, 256));
  assert.equal(job.wantsChunk, false);
  ask(job, 1);
  for (let at = 0; at < 128; at += 4) job.receive(line(1, at, at + 4));
  assert.equal(job.wantsChunk, false); // received, but not taken
  drain(job);
  assert.equal(job.wantsChunk, true);
  job.add(frames(256, 512));
  assert.equal(job.wantsChunk, false);
});

test("requests of one recording name one series, and another after a loss", () => {
  const job = new DescribeJob({ batchSize: 4, dedupe: true }, undefined);
  job.add(frames(0, 4));
  const [first] = ask(job, 1);
  job.receive(line(1, 0, 4, true));
  job.noteMore();
  drain(job);
  job.add(frames(4, 8));
  const [second] = ask(job, 2);
  assert.equal(typeof first?.series, "number");
  assert.equal(second?.series, first?.series);
  job.unask();
  const [again] = ask(job, 3);
  assert.notEqual(again?.series, first?.series);
  const other = new DescribeJob({ dedupe: true }, undefined);
  other.add(frames(0, 4));
  assert.notEqual(ask(other, 1)[0]?.series, again?.series);
});

test("a slow source is compared with the request before", () => {
  const job = new DescribeJob({ dedupe: true }, undefined);
  job.add(frames(0, 4));
  job.add(frames(4, 8));
  assert.equal(ask(job, 1).length, 1);
  assert.equal(job.wantsRequest, false);
  job.receive(line(1, 0, 4, true));
  assert.ok(job.wantsRequest);
  assert.equal(ask(job, 2)[0]?.images[0]?.index, 4);
  const full = new DescribeJob({ dedupe: true }, undefined);
  full.add(frames(0, 256));
  full.add(frames(256, 512));
  assert.equal(ask(full, 1).length, 2);
});

test("a request that is alone, or whose frames are not compared, names no series", () => {
  for (const [options, total] of [[{}, 4], [{ mode: "interleaved" }, 8], [{ dedupe: false }, 8]] as const) {
    const job = new DescribeJob(options, total);
    job.add(frames(0, 4));
    if (total === 4) job.endInput();
    assert.equal("series" in (ask(job, 1)[0] ?? {}), false);
  }
});

test("a batch size out of bounds is refused", () => {
  for (const batchSize of [0, -1, 257, 1.5, NaN]) assert.throws(() => new DescribeJob({ batchSize }, 1), InvalidRequestError);
});

test("five crashes in three minutes are a loop; the delay grows and has jitter", () => {
  const breaker = new Breaker();
  assert.equal(breaker.delayMs(0), 0);
  const delays = Array.from({ length: MAX_CRASHES }, (_, at) => {
    assert.equal(breaker.isLoop(at), false);
    breaker.note(at);
    return breaker.delayMs(at, 1);
  });
  assert.deepEqual(delays, [100, 200, 400, 800, 1600]);
  assert.equal(breaker.delayMs(4, 0), 800);
  assert.ok(breaker.isLoop(5));
  assert.ok(!breaker.isLoop(WINDOW_MS + 1));
});
