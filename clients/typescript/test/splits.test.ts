/**
 * Promise 2 of docs/reliability.md: every vector decodes the same whole, byte by byte, and split in two at every offset.
 * The lines of every stream, and what those that a client is sent mean. `tests/faults/test_promise_02_split_offsets.py` does it in Python.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import { FrameTooLarge, LineDecoder } from "../src/codec.js";
import { decodeReply } from "../src/replies.js";
import { figure, rounds } from "./support/figures.js";
import { readVectors, toBytes } from "./support/vectors.js";
import type { Bytes } from "./support/vectors.js";

/** Of a longer line only the bytes are compared: what it means depends on nothing else, and takes a while to say. */
const MEANT_BYTES = 8 * 1024;

/** A longer stream is split everywhere only in a long run, else at so many places. */
const EVERYWHERE_BYTES = rounds({ push: MEANT_BYTES, long: Number.POSITIVE_INFINITY });
const SOME_PLACES = 64;

interface Stream {
  readonly name: string;
  readonly bytes: Buffer;
  readonly limit: number | undefined;
  readonly isReply: boolean;
}

function* streams(): Generator<Stream> {
  for (const file of ["decode/requests", "invalid/requests", "invalid/params", "decode/replies", "invalid/lines"]) {
    for (const text of readVectors(file)) {
      const { name, line } = JSON.parse(text) as { name: string; line: Bytes };
      const isReply = file === "decode/replies" || file === "invalid/lines";
      yield { name: `${file}#${name}`, bytes: Buffer.concat([toBytes(line), Buffer.of(0x0a)]), limit: undefined, isReply };
    }
  }
  for (const file of ["decode/lines", "invalid/streams"]) {
    for (const text of readVectors(file)) {
      const { name, input, max_frame_bytes: limit } = JSON.parse(text) as { name: string; input: Bytes; max_frame_bytes?: number };
      yield { name: `${file}#${name}`, bytes: toBytes(input), limit, isReply: false };
    }
  }
}

function* feedings(stream: Buffer): Generator<Uint8Array[]> {
  yield Array.from(stream, (byte) => Uint8Array.of(byte));
  const step = stream.length > EVERYWHERE_BYTES ? Math.ceil(stream.length / SOME_PLACES) : 1;
  for (let at = 1; at < stream.length; at += step) yield [stream.subarray(0, at), stream.subarray(at)];
}

/** Lines and what they mean, in turn. */
type Decoded = readonly (Uint8Array | string)[];

/** Everything that `parts` decode to, in a form that can be compared. */
function decode({ bytes, limit, isReply }: Stream, parts: Uint8Array[]): Decoded {
  const decoder = new LineDecoder(limit);
  const found: (Uint8Array | string)[] = [];
  try {
    for (const part of parts) {
      for (const line of decoder.feed(part)) found.push(isReply && bytes.length <= MEANT_BYTES ? meaning(line) : line);
    }
    found.push("rest", decoder.rest());
  } catch (error) {
    assert.ok(error instanceof FrameTooLarge, String(error));
    found.push("too large");
  }
  return found;
}

/** Compare; bytes as bytes, for a long stream has as many splits. */
function isSame(one: Decoded, other: Decoded): boolean {
  return (
    one.length === other.length &&
    one.every((item, at) => {
      const twin = other[at];
      return typeof item === "string" || typeof twin !== "object" ? item === twin : Buffer.compare(item, twin) === 0;
    })
  );
}

function meaning(line: Uint8Array): string {
  try {
    return JSON.stringify(decodeReply(line));
  } catch (error) {
    return `${error instanceof Error ? error.name : ""}: ${String(error)}`;
  }
}

test("every vector at every split", { timeout: 3_600_000 }, () => {
  let vectors = 0;
  let splits = 0;
  for (const stream of streams()) {
    const whole = decode(stream, [stream.bytes]);
    for (const parts of feedings(stream.bytes)) {
      assert.ok(isSame(decode(stream, parts), whole), `${stream.name} in parts of ${parts.slice(0, 3).map((part) => part.length)}`);
      splits += 1;
    }
    vectors += 1;
  }
  assert.ok(vectors > 200);
  figure("2", { typescript_vectors: vectors, typescript_splits: splits });
});
