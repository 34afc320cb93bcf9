/** The start-up lines of a daemon that this client spawned, sans IO. @module */

import { FrameTooLarge, LineDecoder, Malformed, decodeLine } from "./codec.js";
import { START_FAILED, StartError } from "./errors.js";
import { number, object, optional, text } from "./shape.js";

// A start-up line is a short object; what is longer is no start-up line.
const MAX_LINE_BYTES = 64 * 1024;

const startupLine = object<{
  status: string;
  model?: string | undefined;
  stage?: string | undefined;
  fraction?: number | undefined;
  error?: string | undefined;
  code?: string | undefined;
}>({
  // A status that this client does not know is a sign of life, no more.
  status: text,
  model: optional(text),
  stage: optional(text),
  fraction: optional(number),
  error: optional(text),
  code: optional(text),
});

/** How far a load has come. */
export interface LoadProgress {
  readonly model: string | undefined;
  readonly stage: string | undefined;
  /** From 0 to 1. */
  readonly fraction: number | undefined;
}

/** How far a start has come. */
export class Startup {
  /** The socket answers. */
  bound = false;
  /** Another daemon holds the socket. */
  running = false;
  /** The daemon's own reason why it could not start. */
  fatal: StartError | undefined;
  /** No further line comes: a last one was read, or the descriptor is closed. */
  over = false;
  /** How many came; grows with progress. */
  lines = 0;
  readonly #decoder = new LineDecoder(MAX_LINE_BYTES);

  /** Take bytes; yield the progress they tell of. */
  *receive(data: Uint8Array): Generator<LoadProgress, void, undefined> {
    if (this.over) return;
    try {
      for (const raw of this.#decoder.feed(data)) {
        const line = startupLine(decodeLine(raw), "line");
        this.lines += 1;
        switch (line.status) {
          case "loading":
            yield { model: line.model, stage: line.stage, fraction: line.fraction };
            break;
          case "bound":
            this.bound = true;
            break;
          case "ready":
            this.bound = this.over = true;
            break;
          case "running":
            this.running = this.over = true;
            break;
          case "fatal":
            this.fatal = new StartError(line.error ?? "The daemon gave no reason.", line.code ?? START_FAILED);
            this.over = true;
        }
        if (this.over) return;
      }
    } catch (error) {
      if (!(error instanceof Malformed || error instanceof FrameTooLarge)) throw error;
      this.fatal = new StartError(`The command wrote what no daemon writes when it starts: ${error.message}`);
      this.over = true;
    }
  }
}
