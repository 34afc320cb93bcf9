/** Waiting: for time, for a signal, for whichever comes first. @module */

/** Milliseconds of the monotonic clock. */
export function nowMs(): number {
  return performance.now();
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
   * Return when it is set or the clock reaches `untilMs`.
   *
   * @throws the reason of `signal`, when that is aborted first.
   */
  async wait(untilMs: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    let finish = (): void => undefined;
    await new Promise<void>((done) => {
      const resolve = (): void => done();
      const timer = untilMs < Infinity ? setTimeout(resolve, clampMs(untilMs - nowMs())).unref() : undefined;
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

function clampMs(ms: number): number {
  return Math.min(Math.max(0, Math.ceil(ms)), MAX_TIMER_MS);
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
