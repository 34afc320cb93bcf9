/** How long each thing may take. @module */

/** Deadlines, in milliseconds; `Infinity` means none. */
export interface Timeouts {
  /** To connect, and for `hello`, `ping`, `status` and `shutdown`, which a daemon answers at once. Default: 5,000. */
  readonly connectMs: number;
  /** From spawning a daemon until it is bound; starts again when it reports progress. Default: 30,000. */
  readonly startMs: number;
  /** From asking until the first batch, text or count; starts again while a model loads. Default: 120,000. */
  readonly firstByteMs: number;
  /** From one batch to the next; the time between two calls of the iterator is not counted. Default: 300,000. */
  readonly betweenBatchesMs: number;
  /** From one piece of a generated text to the next, counted the same way. Default: 120,000. */
  readonly betweenDeltasMs: number;
  /** For a whole `describe` or `generate`, the caller's own time included. Default: none. */
  readonly totalMs: number;
}

/** The defaults. */
export const DEFAULT_TIMEOUTS: Timeouts = Object.freeze({
  connectMs: 5_000,
  startMs: 30_000,
  firstByteMs: 120_000,
  betweenBatchesMs: 300_000,
  betweenDeltasMs: 120_000,
  totalMs: Infinity,
});

/** Return `base` with what is given of `changes`. */
export function withTimeouts(base: Timeouts, changes: Partial<Timeouts> | undefined): Timeouts {
  const merged = { ...base, ...changes };
  for (const [name, ms] of Object.entries(merged)) {
    if (typeof ms !== "number" || !(ms > 0)) throw new RangeError(`timeouts.${name} is ${String(ms)}; it must be over 0.`);
  }
  return merged;
}
