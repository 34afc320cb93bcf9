/** The daemon's bytes to events. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { BusyError, InternalError, ProtocolError, RequestError } from "../src/errors.js";
import { ClientSession } from "../src/session.js";
import type { SessionEvent } from "../src/session.js";

const USAGE = { promptTokens: 1, completionTokens: 1, tokensPerS: 1, timeToFirstTokenS: 1, peakMemoryBytes: 0 };

/** A session with one request under way, number 1, and the events of some lines. */
function play(...lines: (object | string)[]): { session: ClientSession; events: SessionEvent[] } {
  const session = new ClientSession();
  session.request("ping", {});
  const text = lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join("");
  return { session, events: [...session.receive(Buffer.from(text))] };
}

function error(...lines: (object | string)[]): unknown {
  const event = play(...lines).events.at(-1);
  return event?.type === "broken" || event?.type === "refused" ? event.error : undefined;
}

test("each line becomes one event", () => {
  const frame = { index: 0, timestamp: null, imagePath: "/a", description: "", activity: "", apps: [], topics: [], newer: 1 };
  const { session, events } = play(
    { event: "model", model: "m", state: "loading", stage: "weights", fraction: 0.5 },
    { id: 1, batch: 1, results: [frame], partial: true, progress: { current: 1, total: 2 } },
    { id: 1, delta: "a" },
    { id: 1, reasoningDelta: "b" },
    { id: 1, text: "a", finishReason: "stop", usage: USAGE, done: true },
    { id: 1, delta: "after the last line: dropped" },
  );
  assert.deepEqual(events.map((event) => event.type), ["news", "batched", "piece", "piece", "generated"]);
  assert.equal(session.pending.size, 0);
});

test("null is the same as missing", () => {
  const { events } = play({ id: 1, result: { a: 1 }, done: true, error: null, code: null, results: null });
  assert.deepEqual(events, [{ type: "answered", requestId: 1, result: { a: 1 } }]);
});

test("error lines become typed errors, also with a code of tomorrow or none", () => {
  const line = { id: 1, error: "no", code: "busy", retryable: true, data: { retryAfterMs: 250 }, done: true };
  const busy = error(line);
  assert.ok(busy instanceof BusyError && busy.retryable && busy.retryAfterMs === 250);
  const tomorrow = error({ ...line, code: "of_tomorrow" });
  assert.ok(tomorrow instanceof RequestError && tomorrow.constructor === RequestError && tomorrow.code === "of_tomorrow");
  assert.equal((error({ id: 1, error: "no" }) as RequestError).code, "unknown");
  assert.ok(error({ ...line, code: "worker_crashed" }) instanceof InternalError);
  for (const name of ["__proto__", "constructor", "toString"]) {
    assert.equal((error({ ...line, code: name }) as RequestError).constructor, RequestError);
  }
});

test("a refusal without an id ends everything", () => {
  const { events } = play({ id: null, error: "no", code: "parse_error", done: true }, { id: 1, result: {}, done: true });
  assert.deepEqual(events.map((event) => event.type), ["broken"]);
});

test("what no daemon sends breaks the connection", () => {
  const lines: (object | string)[] = [
    "garbage",
    "[]",
    "1",
    "null",
    '"text"',
    {},
    { id: 2, result: {}, done: true },
    { id: 0, result: {}, done: true },
    { id: "1", result: {}, done: true },
    { id: 1.5, result: {}, done: true },
    { id: 1 },
    { id: 1, done: true },
    { id: 1, result: {} },
    { id: 1, error: { message: "an object" }, done: true },
    { id: 1, results: [{ index: "0" }], done: true },
    { id: 1, results: {}, done: true },
    { id: 1, delta: 5 },
    { id: 1, text: "a", finishReason: "stop", usage: {}, done: true },
    '{"id":9007199254740993,"result":{},"done":true}',
  ];
  for (const line of lines) assert.ok(error(line) instanceof ProtocolError, JSON.stringify(line));
});

test("a cancelled request is told once, and what still comes for it dropped", () => {
  const { session } = play();
  assert.match(Buffer.from(session.cancel(1) ?? []).toString(), /"method":"cancel","params":\{"target":1\}/);
  assert.equal(session.cancel(1), undefined);
  assert.deepEqual([...session.receive(Buffer.from('{"id":1,"error":"x","code":"cancelled","done":true}\n'))], []);
});

test("an error's message repeats little of what came, and nothing that a terminal obeys", () => {
  const message = (error(`\u001b[31m${"x".repeat(1000)}`) as Error).message;
  assert.ok(message.length < 300 && !message.includes("\u001b"), message);
});
