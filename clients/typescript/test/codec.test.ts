/** Bytes to lines to values, and back. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { FrameTooLarge, LineDecoder, Malformed, decodeLine, encodeLine } from "../src/codec.js";
import { InvalidRequestError } from "../src/errors.js";

const TEXTS = ["plain", "é 漢 👩‍💻", "a\u2028b\u2029c\u0085d", "", '"\\\n'];
const STREAM = Buffer.concat(TEXTS.map((text) => encodeLine({ text })));

function decodeAll(...parts: Uint8Array[]): unknown[] {
  const decoder = new LineDecoder();
  return parts.flatMap((part) => [...decoder.feed(part)]).map((line) => (decodeLine(line) as { text: string }).text);
}

test("lines decode the same at every split, and byte by byte", () => {
  for (let at = 0; at <= STREAM.length; at++) {
    assert.deepEqual(decodeAll(STREAM.subarray(0, at), STREAM.subarray(at)), TEXTS);
  }
  assert.deepEqual(decodeAll(...Array.from(STREAM, (byte) => Uint8Array.of(byte))), TEXTS);
});

test("blank lines are skipped, a last one without its line feed is kept", () => {
  const decoder = new LineDecoder();
  assert.deepEqual([...decoder.feed(Buffer.from("\n \r\n1\n2"))].map(String), [String(Buffer.from("1"))]);
  assert.equal(Buffer.from(decoder.rest()).toString(), "2");
  assert.equal(decoder.rest().length, 0);
});

test("a line over the limit ends the stream, complete or not; the lines before it count", () => {
  for (const data of ["123\n123456\n", "123\n123456"]) {
    const decoder = new LineDecoder(5);
    const lines: string[] = [];
    assert.throws(() => {
      for (const line of decoder.feed(Buffer.from(data))) lines.push(Buffer.from(line).toString());
    }, FrameTooLarge);
    assert.deepEqual(lines, ["123"]);
  }
  assert.equal([...new LineDecoder(5).feed(Buffer.from("12345\n"))].length, 1);
});

test("what is no UTF-8 or no JSON is malformed", () => {
  const lines = [Buffer.from([0x22, 0xff, 0x22]), Buffer.from("\ufeff{}"), Buffer.from("{"), Buffer.from("NaN"), Buffer.from("'a'")];
  for (const line of lines) assert.throws(() => decodeLine(line), Malformed);
});

test("deep nesting is no stack overflow", () => {
  const deep = Buffer.from("[".repeat(500_000) + "]".repeat(500_000));
  assert.ok(Array.isArray(decodeLine(deep)));
});

test("a lone surrogate is replaced", () => {
  assert.deepEqual(decodeLine(encodeLine({ text: "a\ud800b\udc00", pair: "👍" })), { text: "a\ufffdb\ufffd", pair: "👍" });
});

test("a request over the limit is refused before it is sent", () => {
  assert.throws(() => encodeLine({ text: "x".repeat(100) }, 50), InvalidRequestError);
});
