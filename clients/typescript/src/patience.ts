/** How long one job waits: its deadlines, a busy daemon, and one that was lost. @module */

import type { ClientCore } from "./core.js";
import { BusyError, ConnectError, ConnectionLostError, DeadlineError, START_FAILED, StartError } from "./errors.js";
import type { DeadlinePhase, RequestError } from "./errors.js";
import type { Timeouts } from "./timeouts.js";
import type { Link } from "./transport.js";
import { nowMs } from "./wait.js";

// An attached daemon is somebody else's to restart; it is looked for so often meanwhile.
const RECONNECT_MS = 100;

/** Whether the daemon was lost, so that another may be asked. */
export function isLoss(error: unknown): error is ConnectionLostError | ConnectError | StartError {
  return error instanceof ConnectionLostError || error instanceof ConnectError || error instanceof StartError;
}

/** What of a job's options is about waiting. */
export interface PatienceOptions {
  readonly timeouts: Timeouts;
  /** Whether to go on after a loss. */
  readonly resume: boolean;
  /** Which deadline holds from one piece to the next. */
  readonly between: "between_batches" | "between_deltas";
  readonly signal: AbortSignal | undefined;
}

/** The clock of one job. */
export class Patience {
  readonly #core: ClientCore;
  readonly #options: PatienceOptions;
  #heardMs = 0;
  #heardPiece = false;
  #refusedBy: Link | undefined;
  #totalUntilMs = Infinity;
  #begun = false;
  #reconnectUntilMs: number | undefined;

  constructor(core: ClientCore, options: PatienceOptions) {
    this.#core = core;
    this.#options = options;
  }

  /** Begin to wait for the next piece: the caller's own time since the last one does not count. */
  begin(): void {
    this.#heardMs = nowMs();
    if (!this.#begun) this.#totalUntilMs = this.#heardMs + this.#options.timeouts.totalMs;
    this.#begun = true;
  }

  /** Note that a daemon was asked, the first or another one. To ask a busy one again begins no wait anew. */
  noteAsked(): void {
    const refusedBy = this.#refusedBy;
    this.#refusedBy = undefined;
    if (refusedBy !== undefined && refusedBy === this.#core.currentLink()) return;
    this.#heardPiece = false;
    this.#heardMs = nowMs();
  }

  /** Note that the model is on its way. */
  noteLoading(): void {
    this.#heardMs = nowMs();
  }

  /** Note that something of the answer came. */
  notePiece(): void {
    this.#heardMs = nowMs();
    this.#heardPiece = true;
    this.#refusedBy = undefined;
    this.#reconnectUntilMs = undefined;
  }

  /** When the whole job's time is over. */
  get totalUntilMs(): number {
    return this.#totalUntilMs;
  }

  /** Return when to stop waiting for the daemon, and the name of that deadline. */
  deadline(): { untilMs: number; phase: DeadlinePhase } {
    const { timeouts, between } = this.#options;
    const betweenMs = between === "between_batches" ? timeouts.betweenBatchesMs : timeouts.betweenDeltasMs;
    const untilMs = this.#heardMs + (this.#heardPiece ? betweenMs : timeouts.firstByteMs);
    if (this.#totalUntilMs <= untilMs) return { untilMs: this.#totalUntilMs, phase: "total" };
    return { untilMs, phase: this.#heardPiece ? between : "first_byte" };
  }

  /** @throws {@link DeadlineError} the deadline of `phase` passed. */
  fail(phase: DeadlinePhase): never {
    throw new DeadlineError(`Nothing came in time (${phase}); the request was cancelled.`, phase);
  }

  /** Wait as long as a busy daemon says. @throws `error`, where it is another one or there is no time. */
  async waitForRoom(error: RequestError): Promise<void> {
    const afterMs = error instanceof BusyError ? error.retryAfterMs : undefined;
    if (afterMs === undefined || nowMs() + afterMs > this.deadline().untilMs) throw error;
    this.#refusedBy = this.#core.currentLink();
    await this.#core.sleep(afterMs, this.#options.signal);
  }

  /** Wait a moment before the next connection. @throws `error`, where there is to be none. */
  async waitForRestart(error: ConnectionLostError | ConnectError | StartError): Promise<void> {
    if (!this.#options.resume || !this.#core.wasConnected) throw error;
    if (error instanceof StartError && error.code !== START_FAILED) throw error; // it said itself why it cannot start
    const { signal } = this.#options;
    if (nowMs() >= this.#totalUntilMs) this.fail("total");
    if (this.#core.settings.ownership !== "attached") {
      this.#core.log(`${error.message.split("\n", 1)[0] ?? ""} Going on with what is left.`);
      await this.#core.sleep(this.#core.supervisor.delayMs(), signal);
      return;
    }
    this.#reconnectUntilMs ??= nowMs() + this.#options.timeouts.connectMs;
    if (nowMs() >= this.#reconnectUntilMs) {
      throw new ConnectionLostError(`The daemon went away and did not come back: ${error.message}`, { cause: error });
    }
    await this.#core.sleep(RECONNECT_MS, signal);
  }
}
