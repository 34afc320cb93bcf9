/** Events for one caller, in order. @module */

import type { SessionEvent } from "./session.js";
import { nowMs } from "./wait.js";
import type { Wake } from "./wait.js";

/** Holds what came until its caller takes it. */
export class Mailbox {
  readonly #wake: Wake;
  readonly #events: SessionEvent[] = [];

  constructor(wake: Wake) {
    this.#wake = wake;
  }

  /** Add an event and wake the caller. */
  put(event: SessionEvent): void {
    this.#events.push(event);
    this.#wake.set();
  }

  /** Return the next event if there is one. */
  poll(): SessionEvent | undefined {
    return this.#events.shift();
  }

  /** Return the next event, undefined when the clock reaches `untilMs`; throws the reason of an aborted `signal`. */
  async next(untilMs: number, signal?: AbortSignal): Promise<SessionEvent | undefined> {
    for (;;) {
      const event = this.poll();
      if (event !== undefined || nowMs() >= untilMs) return event;
      await this.#wake.wait(untilMs, signal);
    }
  }
}
