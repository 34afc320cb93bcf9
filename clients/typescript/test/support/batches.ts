/** The batches of a job, collected and checked: each frame once and in order, numbers and progress those of one job. */

import assert from "node:assert/strict";

import type { Batch } from "../../src/index.js";

/** Paths that a fake server describes; none is there. */
export const paths = (count: number): string[] => Array.from({ length: count }, (_, at) => `/${at}.png`);

/** Take all batches, `each` as it comes. */
export async function collect(batches: AsyncIterable<Batch>, each: (batch: Batch) => void = () => undefined): Promise<Batch[]> {
  const all: Batch[] = [];
  for await (const batch of batches) {
    all.push(batch);
    each(batch);
  }
  return all;
}

/** Check the batches of a job of `count` frames, four in each. */
export function check(batches: Batch[], count: number): void {
  const indices = batches.flatMap((batch) => batch.results.map((frame) => frame.index));
  assert.deepEqual(indices, paths(count).map((_, at) => at));
  assert.deepEqual(batches.map((batch) => batch.batch), batches.map((_, at) => at + 1));
  assert.deepEqual(batches.map((batch) => batch.progress.current), batches.map((_, at) => Math.min(4 * (at + 1), count)));
  assert.deepEqual(batches.map((batch) => batch.done), batches.map((_, at) => at === batches.length - 1));
}
