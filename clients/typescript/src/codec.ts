/** Bytes to lines, lines to values, and back. No sockets. @module */

import { InvalidRequestError } from "./errors.js";
import { MAX_FRAME_BYTES } from "./protocol.gen.js";

const LINE_FEED = 0x0a;

// Refuses invalid UTF-8, and leaves a byte order mark to the JSON parser, which refuses that.
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A line passed the limit before its line feed came. The stream cannot be followed any further. */
export class FrameTooLarge extends Error {}

/** A line is not what the protocol allows. */
export class Malformed extends Error {}

/**
 * Splits a byte stream into lines, on byte 0x0A only: U+2028, U+2029 and U+0085 are legal inside strings, and a
 * character that two chunks share is decoded with its whole line.
 */
export class LineDecoder {
  readonly maxFrameBytes: number;
  #parts: Uint8Array[] = [];
  #size = 0;

  constructor(maxFrameBytes: number = MAX_FRAME_BYTES) {
    this.maxFrameBytes = maxFrameBytes;
  }

  /**
   * Take `data` and yield each line that is now complete, without its line feed; blank lines are skipped.
   *
   * @throws {@link FrameTooLarge} a line is over the limit, complete or not. Lines before it were yielded.
   */
  *feed(data: Uint8Array): Generator<Uint8Array, void, undefined> {
    let start = 0;
    for (let end; (end = data.indexOf(LINE_FEED, start)) >= 0; start = end + 1) {
      this.#add(data.subarray(start, end));
      const line = this.rest();
      if (line.length > 0) yield line;
    }
    if (start < data.length) this.#add(data.subarray(start));
  }

  /** Return what stands after the last line feed, at the end of the stream, and forget it. Empty if it is blank. */
  rest(): Uint8Array {
    const first = this.#parts[0] ?? new Uint8Array();
    const line = this.#parts.length === 1 ? first : Buffer.concat(this.#parts, this.#size);
    this.#parts = [];
    this.#size = 0;
    return line.every(isSpace) ? new Uint8Array() : line;
  }

  #add(part: Uint8Array): void {
    this.#size += part.length;
    if (this.#size > this.maxFrameBytes) {
      throw new FrameTooLarge(`A line is over the limit of ${this.maxFrameBytes} bytes.`);
    }
    this.#parts.push(part);
  }
}

/** What Python's `bytes.isspace` calls so. */
function isSpace(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}

/**
 * Return the value of a line.
 *
 * @throws {@link Malformed} it is not UTF-8, or not JSON.
 */
export function decodeLine(line: Uint8Array): unknown {
  let text: string;
  try {
    text = utf8.decode(line);
  } catch {
    throw new Malformed("it is not valid UTF-8");
  }
  try {
    return JSON.parse(text) as unknown;
  } catch {
    throw new Malformed("it is not JSON"); // the parser's own message repeats the input, whatever stands in it
  }
}

/**
 * Return `message` as a line with its line feed.
 *
 * @throws {@link InvalidRequestError} it is over `maxBytes`, which the daemon would refuse.
 */
export function encodeLine(message: object, maxBytes: number = MAX_FRAME_BYTES): Uint8Array {
  const text = JSON.stringify(message, replaceSurrogates);
  const line = Buffer.from(`${text}\n`, "utf8");
  if (line.length > maxBytes + 1) {
    const why = `The request has ${line.length} bytes; the daemon takes ${maxBytes}. Send fewer images, or less text.`;
    throw new InvalidRequestError(why, { code: "frame_too_large" });
  }
  return line;
}

// A lone surrogate, as from a file name that is no UTF-8: `JSON.stringify` escapes it, and no daemon could read that.
const LONE_SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function replaceSurrogates(_key: string, value: unknown): unknown {
  return typeof value === "string" ? value.replace(LONE_SURROGATE, "\ufffd") : value;
}
