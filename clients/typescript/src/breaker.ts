/** When to stop starting a daemon that crashes again and again. No clock of its own. @module */

/** So many crashes within {@link WINDOW_MS} are a loop: starting once more would only heat the machine. */
export const MAX_CRASHES = 5;

/** Three minutes. */
export const WINDOW_MS = 180_000;

// Exponential backoff with jitter; the jitter keeps several clients from restarting in step.
const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 5_000;

/** Counts crashes. */
export class Breaker {
  #crashesMs: number[] = [];

  /** Note a crash. */
  note(nowMs: number): void {
    this.#crashesMs = [...this.#crashesMs, nowMs].slice(-MAX_CRASHES);
  }

  /** Whether the last {@link MAX_CRASHES} fell within {@link WINDOW_MS}. */
  isLoop(nowMs: number): boolean {
    return this.#recent(nowMs) >= MAX_CRASHES;
  }

  /** Return how long to wait before the next start; `random` is from 0 to 1. */
  delayMs(nowMs: number, random: number = Math.random()): number {
    const recent = this.#recent(nowMs);
    if (recent === 0) return 0;
    return Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** (recent - 1)) * (0.5 + random / 2);
  }

  #recent(nowMs: number): number {
    return this.#crashesMs.filter((crashMs) => nowMs - crashMs < WINDOW_MS).length;
  }
}
