/** One request about one prompt: asked, and asked once more where its daemon is lost before it said anything. @module */

import type { ClientCore } from "./core.js";
import { CancelledError } from "./errors.js";
import type { ProtocolError } from "./errors.js";
import { Mailbox } from "./mailbox.js";
import { Patience, isLoss } from "./patience.js";
import type { GenerateParams, PromptParams } from "./protocol.gen.js";
import { isLoadProgress } from "./session.js";
import type { Answered, Generated, Piece, SessionEvent } from "./session.js";
import { withTimeouts } from "./timeouts.js";
import type { Timeouts } from "./timeouts.js";
import type { Link } from "./transport.js";
import { Wake } from "./wait.js";

// A prompt that ends two daemons is left alone.
const MAX_LOSSES = 1;

/** What is asked. */
export type Question =
  | { readonly method: "generate"; readonly params: GenerateParams }
  | { readonly method: "count_tokens"; readonly params: PromptParams };

/** What of the options is about waiting. */
export interface AskOptions {
  /** Cancels the request; the call ends with its reason. */
  readonly signal?: AbortSignal;
  /** Deadlines that differ from the client's. */
  readonly timeouts?: Partial<Timeouts>;
  /** Instead of the client's: whether to ask a new daemon where the first was lost before it said anything. */
  readonly resume?: boolean;
}

/** See above. A caller that is slow to take pieces holds up nobody: at most `maxTokens` of them wait here. */
export class Ask {
  readonly #core: ClientCore;
  readonly #signal: AbortSignal | undefined;
  readonly #patience: Patience;
  readonly #wake = new Wake();
  #box = new Mailbox(this.#wake);
  #link: Link | undefined;
  #requestId = 0;
  #heard = false;
  #losses = 0;
  #left = false;

  constructor(core: ClientCore, options: AskOptions) {
    this.#core = core;
    this.#signal = options.signal;
    this.#patience = new Patience(core, {
      timeouts: withTimeouts(core.settings.timeouts, options.timeouts),
      resume: options.resume ?? core.settings.resume,
      between: "between_deltas",
      signal: options.signal,
    });
  }

  /** Do `work`, whose `next` ends when the client is closed. */
  during<T>(work: () => Promise<T>): Promise<T> {
    return this.#core.during(this.#wake, work);
  }

  /** Return what the daemon says next. The last thing it says is no `piece`. After an error, call `leave`. */
  async next(question: Question): Promise<Piece | Generated | Answered> {
    this.#patience.begin();
    for (;;) {
      try {
        const event = await this.#listen(question);
        switch (event.type) {
          case "piece":
          case "generated":
          case "answered":
            this.#heard = true;
            this.#patience.notePiece();
            return event;
          case "news":
            if (isLoadProgress(event)) this.#patience.noteLoading();
            break;
          case "refused":
            this.#link = undefined;
            await this.#patience.waitForRoom(event.error);
            break;
          case "broken":
            this.#losses += 1;
            throw await this.#core.explain(event.error);
          case "batched":
        }
      } catch (error) {
        // Another run may say something else: what was heard cannot be continued.
        if (!isLoss(error) || this.#heard || this.#losses > MAX_LOSSES) throw error;
        this.#link = undefined;
        this.#box = new Mailbox(this.#wake);
        await this.#patience.waitForRestart(error);
      }
    }
  }

  /** Cancel it on the daemon, unless it has ended. A pending `next` ends at once. */
  leave(): void {
    this.#link?.cancel(this.#requestId);
    this.#left = true;
    this.#box.put({ type: "broken", error: leftError() });
  }

  /** End the connection: a peer that mixes up answers is not talked to any further. */
  violated(error: ProtocolError): ProtocolError {
    this.#link?.close(error);
    return error;
  }

  async #listen({ method, params }: Question): Promise<SessionEvent> {
    this.#signal?.throwIfAborted();
    let link = this.#link;
    if (link === undefined) {
      link = await this.#core.linkFor(this.#wake, () => this.#left, this.#patience.totalUntilMs, this.#signal);
      if (link === undefined) throw this.#left ? leftError() : this.#patience.fail("total");
      this.#requestId = link.post(method, params, this.#box);
      this.#link = link;
      this.#patience.noteAsked();
    }
    const { untilMs, phase } = this.#patience.deadline();
    return (await this.#box.next(untilMs, this.#signal)) ?? this.#patience.fail(phase);
  }
}

function leftError(): CancelledError {
  return new CancelledError("The request was left before its end.", { code: "cancelled" });
}
