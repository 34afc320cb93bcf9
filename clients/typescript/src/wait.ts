/** Waiting: for time, for a signal, for whichever comes first. @module */

// A wait for a deadline is cut into pieces of this length, so that a pause is seen.
const SLICE_MS = 1_000;

// A piece that took so much longer was a pause: the machine slept, or this process was stopped or busy with one thing.
const PAUSE_MS = 1_500;

/**
 * A monotonic clock without the pauses that were noticed.
 *
 * An answer that came while we could not run waits to be read: no deadline may pass before it is. Whether Node's own
 * clock stops while the machine sleeps depends on the platform; here all are alike.
 */
export class AwakeClock {
  readonly #monotonicMs: () => number;
  #pausedMs = 0;
  #pausedUntilMs = 0;

  constructor(monotonicMs: () => number) {
    this.#monotonicMs = monotonicMs;
  }

  /** Return the time. */
  nowMs(): number {
    return this.#monotonicMs() - this.#pausedMs;
  }

  /** Return what to call when a wait of `askedMs`, which begins now, has ended. */
  began(askedMs: number): () => void {
    const dueMs = this.#monotonicMs() + askedMs;
    return () => {
      const endMs = this.#monotonicMs();
      if (endMs - dueMs < PAUSE_MS) return;
      this.#pausedMs += Math.max(0, endMs - Math.max(dueMs, this.#pausedUntilMs));
      this.#pausedUntilMs = Math.max(this.#pausedUntilMs, endMs);
    };
  }
}

const clock = new AwakeClock(() => performance.now());

/** Milliseconds of the clock of deadlines. */
export function nowMs(): number {
  return clock.nowMs();
}

// Node runs a timer of more at once.
const MAX_TIMER_MS = 2 ** 31 - 1;

/**
 * Wakes whoever waits on it.
 *
 * It remembers nothing: check what you wait for, then call `wait` in the same turn of the event loop, and check again.
 */
export class Wake {
  readonly #waiters = new Set<() => void>();

  /** Wake all who wait. */
  set(): void {
    for (const resume of [...this.#waiters]) resume();
  }

  /**
   * Return when it is set, the clock reaches `untilMs`, or a piece of the time to it has passed.
   *
   * @throws the reason of `signal`, when that is aborted first.
   */
  async wait(untilMs: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    let finish = (): void => undefined;
    await new Promise<void>((done) => {
      const resolve = (): void => done();
      const sliceMs = Math.min(SLICE_MS, Math.max(0, Math.ceil(untilMs - nowMs())));
      const ended = clock.began(sliceMs);
      const onTime = (): void => {
        ended();
        done();
      };
      const timer = untilMs < Infinity ? setTimeout(onTime, sliceMs).unref() : undefined;
      this.#waiters.add(resolve);
      signal?.addEventListener("abort", resolve, { once: true });
      finish = () => {
        clearTimeout(timer);
        this.#waiters.delete(resolve);
        signal?.removeEventListener("abort", resolve);
      };
    });
    finish();
    signal?.throwIfAborted();
  }
}

/** Wait. @throws the reason of `signal`, when that is aborted first. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  const untilMs = nowMs() + ms;
  const wake = new Wake();
  while (nowMs() < untilMs) await wake.wait(untilMs, signal);
}

/** Return what `promise` does, unless `signal` is aborted first: then its reason is thrown and `promise` left alone. */
export async function orAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  promise.catch(() => undefined);
  signal.throwIfAborted();
  let stop = (): void => undefined;
  const aborted = new Promise<never>((_, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    signal.addEventListener("abort", onAbort, { once: true });
    stop = () => signal.removeEventListener("abort", onAbort);
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    stop();
  }
}

/**
 * Keeps the host process alive while somebody waits.
 *
 * Sockets, pipes, processes and timers of a client are all unreferenced; this one timer is not, and runs only while a
 * call is pending.
 */
export class Keepalive {
  #holders = 0;
  #timer: NodeJS.Timeout | undefined;

  /** Hold the host until `work` is settled. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    if (this.#holders++ === 0) this.#timer = setInterval(() => undefined, MAX_TIMER_MS);
    try {
      return await work();
    } finally {
      if (--this.#holders === 0) clearInterval(this.#timer);
    }
  }
}
