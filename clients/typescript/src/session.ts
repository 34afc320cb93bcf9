/** The client's side of one connection, sans IO: requests to bytes, bytes to events. No sockets, no clock. @module */

import { FrameTooLarge, LineDecoder, Malformed, encodeLine } from "./codec.js";
import { ProtocolError, RequestError, errorFromCode, shorten } from "./errors.js";
import type { VlmdError } from "./errors.js";
import { MAX_FRAME_BYTES } from "./protocol.gen.js";
import type { FrameResult, Method, MethodMap, Progress, Usage } from "./protocol.gen.js";
import { decodeReply } from "./replies.js";
import type { Reply } from "./replies.js";

/** The one answer of a request; its `result` is not yet checked. */
export interface Answered {
  readonly type: "answered";
  readonly requestId: number;
  readonly result: unknown;
}

/** Some frames of a request; with `done` the last of them. */
export interface Batched {
  readonly type: "batched";
  readonly requestId: number;
  readonly results: readonly FrameResult[];
  readonly progress: Progress | undefined;
  readonly done: boolean;
}

/** A piece of a generated text, or of the thinking before it. */
export interface Piece {
  readonly type: "piece";
  readonly requestId: number;
  readonly text: string;
  readonly reasoning: string;
}

/** The end of a generation: its whole text. */
export interface Generated {
  readonly type: "generated";
  readonly requestId: number;
  readonly text: string;
  readonly reasoning: string | undefined;
  readonly finishReason: string;
  readonly usage: Usage;
}

/** A request ended with an error line. */
export interface Refused {
  readonly type: "refused";
  readonly requestId: number;
  readonly error: RequestError;
}

/** Unasked news, for everyone who waits: a model's state, or that the daemon drains. */
export interface News {
  readonly type: "news";
  readonly event: string;
  readonly model: string | undefined;
  readonly state: string | undefined;
  readonly stage: string | undefined;
  readonly fraction: number | undefined;
}

/** The connection cannot be followed any further; every pending request ends with `error`. */
export interface Broken {
  readonly type: "broken";
  readonly error: VlmdError;
}

/** What a session makes of the daemon's bytes. */
export type SessionEvent = Answered | Batched | Piece | Generated | Refused | News | Broken;

/** Whether a model is on its way, so that deadlines start again. */
export function isLoadProgress(news: News): boolean {
  return news.event === "model" && (news.state === "loading" || news.state === "restarting");
}

/** State of one connection: ids, and which of them are still to be answered. After `broken` it takes no more bytes. */
export class ClientSession {
  readonly #lines: LineDecoder;
  readonly #pending = new Set<number>();
  #nextId = 1;
  #broken = false;

  constructor(maxFrameBytes: number = MAX_FRAME_BYTES) {
    this.#lines = new LineDecoder(maxFrameBytes);
  }

  /** Ids whose last line somebody awaits. */
  get pending(): ReadonlySet<number> {
    return this.#pending;
  }

  /** Return the id and the line of a new request. */
  request<M extends Method>(method: M, params: MethodMap[M]["params"]): { id: number; line: Uint8Array } {
    const made = this.#line(method, params);
    this.#pending.add(made.id);
    return made;
  }

  /** Return the line that cancels `target`, nothing when it has ended; what still comes for it is dropped. */
  cancel(target: number): Uint8Array | undefined {
    return this.#pending.delete(target) ? this.#line("cancel", { target }).line : undefined;
  }

  /** Take bytes; yield events in order. */
  *receive(data: Uint8Array): Generator<SessionEvent, void, undefined> {
    if (this.#broken) return;
    try {
      for (const line of this.#lines.feed(data)) {
        const event = this.#receiveLine(line);
        if (event !== undefined) yield event;
        if (this.#broken) return;
      }
    } catch (error) {
      if (!(error instanceof FrameTooLarge)) throw error;
      yield this.#break(new ProtocolError(`The daemon sent a line of over ${this.#lines.maxFrameBytes} bytes.`));
    }
  }

  #line(method: Method, params: object): { id: number; line: Uint8Array } {
    const line = encodeLine({ id: this.#nextId, method, params });
    return { id: this.#nextId++, line };
  }

  #receiveLine(line: Uint8Array): SessionEvent | undefined {
    let reply: Reply;
    try {
      reply = decodeReply(line);
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      const shown = shorten(Buffer.from(line.subarray(0, 200)).toString());
      return this.#break(new ProtocolError(`The peer sent a line that no daemon sends (${error.message}): ${shown}`));
    }
    if (reply.event !== undefined) {
      const { event, model, state, stage, fraction } = reply;
      return { type: "news", event, model, state, stage, fraction };
    }
    const id = reply.id;
    if (id === undefined) return this.#break(unaddressed(reply));
    if (typeof id !== "number" || id <= 0 || id >= this.#nextId) {
      return this.#break(new ProtocolError(`The peer answered request ${shorten(String(id))}, which was never made.`));
    }
    // Else it was left: its last lines may still be under way.
    return this.#pending.has(id) ? this.#answer(id, reply) : undefined;
  }

  #answer(requestId: number, reply: Reply): SessionEvent {
    const done = reply.done ?? false;
    if (done || reply.error !== undefined) this.#pending.delete(requestId);
    if (reply.error !== undefined) return { type: "refused", requestId, error: errorOf(reply) };
    if (reply.results !== undefined) {
      return { type: "batched", requestId, results: reply.results, progress: reply.progress, done };
    }
    if (done && reply.text !== undefined && reply.finishReason !== undefined && reply.usage !== undefined) {
      const { text, reasoning, finishReason, usage } = reply;
      return { type: "generated", requestId, text, reasoning, finishReason, usage };
    }
    if (!done && (reply.delta !== undefined || reply.reasoningDelta !== undefined)) {
      return { type: "piece", requestId, text: reply.delta ?? "", reasoning: reply.reasoningDelta ?? "" };
    }
    if (done && reply.result !== undefined) return { type: "answered", requestId, result: reply.result };
    const message = `The peer's line for request ${requestId} has no result, batch, text or error.`;
    return this.#break(new ProtocolError(message));
  }

  #break(error: VlmdError): Broken {
    this.#broken = true;
    this.#pending.clear();
    return { type: "broken", error };
  }
}

function errorOf(reply: Reply): RequestError {
  const message = reply.error ?? "";
  if (reply.code === undefined) return new RequestError(message, { code: "unknown" });
  return errorFromCode(message, { code: reply.code, retryable: reply.retryable ?? false, data: reply.data ?? {} });
}

function unaddressed(reply: Reply): VlmdError {
  if (reply.error === undefined) return new ProtocolError("The peer sent a line with neither an id nor an event.");
  // It could not read a line of ours: which request that was is not known, so all of them end.
  return errorOf(reply);
}
