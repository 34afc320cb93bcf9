/** Calls, iteration, backpressure, abortion, deadlines and the one way of closing, against a scripted server. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { getEventListeners, once } from "node:events";
import { join } from "node:path";
import { test } from "node:test";

import { Client, ClosedError, DeadlineError } from "../src/index.js";
import type { Batch, ClientOptions, ImageLike } from "../src/index.js";
import { FakeServer, helloResult, helloThen, obedient } from "./support/fake-server.js";
import { leaveNothing, useFolder } from "./support/scene.js";
import { sleep, until } from "./support/waiting.js";

const folder = useFolder();
leaveNothing();

const socket = (): string => join(folder(), "s");
const attach = (options: ClientOptions = {}): Client => new Client({ socket: socket(), start: false, ...options });
const paths = (count: number): string[] => Array.from({ length: count }, (_, at) => `/${at}.png`);

test("arrays, iterables and async iterables, with labels", async () => {
  await using server = await FakeServer.start(socket());
  await using client = attach();
  const images: ImageLike[] = ["a.png", new URL("file:///b%20c.png"), { path: "/c.png", timestamp: 1.5, index: 70, id: "c" }];
  async function* slowly(): AsyncGenerator<ImageLike> {
    for (const image of images) yield await Promise.resolve(image);
  }
  for (const source of [images, new Set(images), images.values(), slowly()]) {
    const frames = await client.describeAll(source);
    assert.deepEqual(
      frames.map(({ index, imagePath, timestamp, id, ok }) => ({ index, imagePath, timestamp, id, ok })),
      [
        { index: 0, imagePath: join(process.cwd(), "a.png"), timestamp: null, id: undefined, ok: true },
        { index: 1, imagePath: "/b c.png", timestamp: null, id: undefined, ok: true },
        { index: 70, imagePath: "/c.png", timestamp: 1.5, id: "c", ok: true },
      ],
    );
  }
  assert.deepEqual(await client.describeAll([]), []);
  assert.equal(server.connections, 1);
});

test("batches have numbers and progress; an array's total is known at once, an iterable's at its end", async () => {
  await using _server = await FakeServer.start(socket());
  await using client = attach();
  const seen: unknown[] = [];
  const batches: Batch[] = [];
  for await (const batch of client.describe(paths(10), { onProgress: (progress) => seen.push(progress) })) batches.push(batch);
  assert.deepEqual(batches.map((batch) => [batch.batch, batch.results.length, batch.done]), [[1, 4, false], [2, 4, false], [3, 2, true]]);
  assert.deepEqual(seen, [4, 8, 10].map((current) => ({ current, total: 10 })));
  const totals: unknown[] = [];
  for await (const batch of client.describe(paths(600).values(), { batchSize: 100 })) totals.push(batch.progress.total);
  assert.deepEqual([totals.length, totals[0], totals.at(-1)], [6, undefined, 600]);
});

test("an endless iterable is read only a little ahead, and closed when the loop is left", async () => {
  await using _server = await FakeServer.start(socket());
  await using client = attach();
  let taken = 0;
  let closed = false;
  async function* endless(): AsyncGenerator<string> {
    try {
      for (;;) yield await Promise.resolve(`/${taken++}.png`);
    } finally {
      closed = true;
    }
  }
  let current = 0;
  for await (const batch of client.describe(endless())) {
    ({ current } = batch.progress);
    if (batch.batch === 200) break;
    if (batch.batch % 50 === 0) await sleep(5);
  }
  assert.equal(current, 800);
  assert.ok(taken <= current + 2 * 256 + 1, `${taken} taken`);
  await until(() => closed);
  console.log(`# ${taken} of an endless iterable's frames were taken to deliver ${current}`);
});

test("a camera's frames are not held up by its next ones", async () => {
  await using _server = await FakeServer.start(socket());
  await using client = attach();
  let shoot = (): void => undefined;
  async function* camera(): AsyncGenerator<string> {
    for (let at = 0; at < 6; at++) {
      yield `/${at}.png`;
      if (at === 1) await sleep(300);
      else if (at === 3) await new Promise<void>((resolve) => (shoot = resolve));
    }
  }
  const batches: Batch[] = [];
  for await (const batch of client.describe(camera(), { batchSize: 2 })) {
    batches.push(batch);
    if (batch.progress.current === 4) shoot(); // the source would wait for ever: its batch came all the same
  }
  assert.deepEqual(batches.map((batch) => batch.progress.current), [2, 4, 6]);
});

test("what an iterable throws passes through, and cancels", async () => {
  await using server = await FakeServer.start(socket(), obedient({ beforeBatch: () => sleep(2) }));
  await using client = attach();
  function* broken(): Generator<string> {
    yield* paths(300);
    throw new RangeError("no more");
  }
  await assert.rejects(client.describeAll(broken(), { batchSize: 1 }), RangeError);
  await until(() => server.methods.includes("cancel"));
  assert.throws(() => client.describe("/one.png"), TypeError);
  await assert.rejects(client.describeAll([5 as unknown as string]), TypeError);
});

test("an aborted signal ends the wait with its reason, cancels on the daemon and leaves no listener", async () => {
  await using server = await FakeServer.start(socket(), obedient({ beforeBatch: () => sleep(10) }));
  await using client = attach();
  const controller = new AbortController();
  const { signal } = controller;
  const reason = new Error("the user has gone");
  const batches = client.describe(paths(100), { signal });
  await batches.next();
  controller.abort(reason);
  await assert.rejects(batches.next(), reason);
  assert.deepEqual(await batches.next(), { done: true, value: undefined });
  await until(() => server.methods.includes("cancel"));
  assert.equal(getEventListeners(signal, "abort").length, 0);
  for (const call of [client.ping({ signal }), client.hello({ signal }), client.generate("x", { signal }).text()]) {
    await assert.rejects(call, reason);
  }
  await assert.rejects(client.start({ signal }).next(), reason);
  assert.equal((await client.ping()).state, "ready");
});

test("an abort while it connects is no end for the others who wait for that", async () => {
  await using _server = await FakeServer.start(socket(), async (talk) => {
    const hello = await talk.expect("hello");
    await sleep(100);
    talk.answer(hello, helloResult());
    talk.answer(await talk.expect("ping"), { state: "ready", uptimeS: 0 });
    await talk.stall();
  });
  await using client = attach();
  const controller = new AbortController();
  const aborted = client.hello({ signal: controller.signal });
  const other = client.ping();
  setTimeout(() => controller.abort(), 20);
  await assert.rejects(aborted, { name: "AbortError" });
  assert.equal((await other).state, "ready");
});

test("to close rejects everyone who waits, whatever for", async () => {
  await using _server = await FakeServer.start(socket(), helloThen((talk) => talk.stall()));
  const client = attach();
  await client.hello();
  const generation = client.generate("x");
  const waiting = [client.ping(), client.status(), client.describeAll(["/a"]), generation.text(), client.countTokens("x")];
  const settled = Promise.allSettled(waiting);
  await sleep(20);
  await client.close();
  for (const result of await settled) assert.ok(result.status === "rejected" && result.reason instanceof ClosedError);
  await assert.rejects(client.ping(), ClosedError);
  assert.throws(() => client.describe(["/a"]), ClosedError);
  assert.throws(() => client.generate("x"), ClosedError);
  await client.close();
});

test("to close while it connects", async () => {
  await using _server = await FakeServer.start(socket(), (talk) => talk.stall());
  const client = attach();
  const call = client.ping();
  call.catch(() => undefined);
  await sleep(20);
  await client.close();
  await assert.rejects(call, ClosedError);
});

test("to close, or to leave, while it waits for a slow source, a busy daemon or a connection", async () => {
  await using _server = await FakeServer.start(
    socket(),
    helloThen(async (talk) => {
      for await (const request of talk.lines()) {
        if (request.method !== "cancel") talk.refuse(request, "busy", { data: { retryAfterMs: 60_000 } });
      }
    }),
    (talk) => talk.stall(),
  );
  async function* silent(): AsyncGenerator<string> {
    await new Promise(() => undefined);
    yield "/never";
  }
  const client = attach();
  const closed = Promise.allSettled([client.describeAll(silent()), client.describeAll(["/a"]), client.generate("x").text()]);
  await sleep(50);
  await client.close();
  for (const result of await closed) assert.ok(result.status === "rejected" && result.reason instanceof ClosedError);
  await using second = attach();
  const batches = [second.describe(silent()), second.describe(["/a"])];
  const generation = second.generate("x");
  const nexts = Promise.all([...batches.map((each) => each.next()), generation.next()]);
  await sleep(50);
  await Promise.all([...batches.map((each) => each.return()), generation.return()]);
  assert.deepEqual(await nexts, Array(3).fill({ done: true, value: undefined }));
  await assert.rejects(second.describeAll(["/a"], { timeouts: { totalMs: 50 } }), { name: "DeadlineError", phase: "total" });
});

test("the deadlines: first byte, between batches, total, a call", async () => {
  const stall = helloThen((talk) => talk.stall());
  let lines = 0;
  const stalling = obedient({ beforeBatch: () => (++lines % 2 === 0 ? new Promise<void>(() => undefined) : undefined) });
  await using server = await FakeServer.start(socket(), stall, stalling, stall, stall);
  const cases = [
    [{ firstByteMs: 100 }, "first_byte"],
    [{ betweenBatchesMs: 100 }, "between_batches"],
    [{ totalMs: 100 }, "total"],
  ] as const;
  for (const [timeouts, phase] of cases) {
    await using client = attach();
    const error = await client.describeAll(paths(8), { timeouts }).catch((thrown: unknown) => thrown);
    assert.ok(error instanceof DeadlineError && error.phase === phase, String(error));
    await until(() => server.methods.includes("cancel"));
  }
  await using client = attach({ timeouts: { connectMs: 100 } });
  await assert.rejects(client.ping(), { name: "DeadlineError", phase: "first_byte" });
});

test("the time that the caller takes does not count, nor that of its source", async () => {
  await using _server = await FakeServer.start(socket());
  await using client = attach({ timeouts: { firstByteMs: 100, betweenBatchesMs: 100 } });
  async function* slow(): AsyncGenerator<string> {
    await sleep(200);
    yield* paths(8);
    await sleep(200);
    yield* paths(4);
  }
  let count = 0;
  for await (const batch of client.describe(slow())) {
    count += batch.results.length;
    await sleep(150);
  }
  assert.equal(count, 12);
});

test("a host that blocks its event loop does not take that for the daemon's silence", async () => {
  const code = `import { FakeServer } from ${JSON.stringify(new URL("./support/fake-server.js", import.meta.url).href)};
    await FakeServer.start(process.argv[1]); console.log("listening");`;
  const server = spawn(process.execPath, ["--input-type=module", "--eval", code, socket()], { stdio: ["ignore", "pipe", "inherit"] });
  await once(server.stdout, "data");
  try {
    await using client = attach({ timeouts: { connectMs: 300, firstByteMs: 300, betweenBatchesMs: 300 } });
    for (const ask of [() => client.hello(), () => client.ping(), () => client.describeAll(paths(4))]) {
      const asked = ask();
      await sleep(1); // it is under way
      const untilMs = performance.now() + 500;
      while (performance.now() < untilMs) continue;
      await asked;
    }
  } finally {
    server.kill();
    await once(server, "close");
  }
});

test("news of a load restart the deadline", async () => {
  await using _server = await FakeServer.start(
    socket(),
    helloThen(async (talk) => {
      const request = await talk.expect("ping");
      talk.answer(request, { state: "loading", uptimeS: 0 });
      const generate = await talk.expect("generate");
      for (let at = 0; at < 6; at++) {
        talk.line({ event: "model", model: "m", state: "loading", stage: "weights", fraction: at / 6 });
        await sleep(50);
      }
      talk.refuse(generate, "model_load_failed");
      await talk.stall();
    }),
  );
  await using client = attach({ timeouts: { firstByteMs: 150 } });
  await client.ping();
  await assert.rejects(client.generate("x").text(), { code: "model_load_failed" });
});

test("on an older connection that has died, only what changes nothing is asked again", async () => {
  await using server = await FakeServer.start(
    socket(),
    helloThen(async (talk) => {
      for (let asked = 0; asked < 2; asked++) talk.answer(await talk.expect("ping"), { state: "ready", uptimeS: 0 });
      await talk.expect();
      talk.hangUp();
    }),
  );
  const count = (method: string): number => server.received.filter((message) => message.method === method).length;
  await using client = attach();
  for (let asked = 0; asked < 3; asked++) await client.ping();
  assert.equal(count("ping"), 4); // the third was asked twice
  await client.ping();
  await assert.rejects(client.cache("clear"), { name: "ConnectionLostError" });
  assert.equal(count("cache"), 1);
});

test("a busy daemon is asked again when it says", async () => {
  const obey = obedient();
  let refused = 0;
  await using server = await FakeServer.start(
    socket(),
    helloThen(async (talk) => {
      for (; refused < 2; refused++) {
        talk.refuse(await talk.expect("describe_images"), "busy", { retryable: true, data: { retryAfterMs: 30 } });
      }
      await obey(talk);
    }),
  );
  await using client = attach();
  assert.equal((await client.describeAll(paths(3))).length, 3);
  assert.equal(server.connections, 1);
});

test("a daemon that stays busy is not asked without end", async () => {
  await using _server = await FakeServer.start(
    socket(),
    helloThen(async (talk) => {
      for await (const request of talk.lines()) talk.refuse(request, "busy", { retryable: true, data: { retryAfterMs: 100 } });
    }),
  );
  await using client = attach({ timeouts: { firstByteMs: 350 } });
  await assert.rejects(client.describeAll(paths(3)), { name: "BusyError" });
  await assert.rejects(client.generate("p").text(), { name: "BusyError" });
});

test("generate: pieces, text, and what may not be", async () => {
  const usage = { promptTokens: 1, completionTokens: 2, tokensPerS: 1, timeToFirstTokenS: 1, peakMemoryBytes: 0 };
  const end = { text: "ab", finishReason: "stop", usage, done: true };
  await using server = await FakeServer.start(
    socket(),
    helloThen(async (talk) => {
      for await (const { id, method } of talk.lines()) {
        if (method !== "generate") continue;
        talk.line({ id, reasoningDelta: "hm" });
        talk.line({ id, delta: "a" });
        talk.line({ id, delta: server.received.length > 3 ? "c" : "b" });
        talk.line({ id, ...end });
      }
    }),
  );
  await using client = attach();
  const generation = client.generate([{ role: "user", content: "x" }], { seed: 1, maxTokens: 5 });
  const deltas: unknown[] = [];
  for await (const delta of generation) deltas.push(delta);
  assert.deepEqual(deltas, [{ text: "", reasoning: "hm" }, { text: "a", reasoning: "" }, { text: "b", reasoning: "" }]);
  assert.equal(await generation.text(), "ab");
  assert.deepEqual((await generation.result()).usage, usage);
  assert.deepEqual(server.received[1]?.params, { seed: 1, maxTokens: 5, messages: [{ role: "user", content: "x" }] });
  const left = client.generate("x");
  for await (const _ of left) break;
  await assert.rejects(left.text(), { name: "CancelledError" });
  await assert.rejects(client.generate("x").text(), { name: "ProtocolError", message: /is not what its deltas make/ });
});

test("to leave a generation wakes who waits for its next piece", async () => {
  await using _server = await FakeServer.start(socket(), helloThen((talk) => talk.stall()));
  await using client = attach();
  const generation = client.generate("x");
  const next = generation.next();
  const batches = client.describe(["/a"]);
  const batch = batches.next();
  await sleep(30);
  await generation.return();
  await batches.return();
  assert.deepEqual([await next, await batch], Array(2).fill({ done: true, value: undefined }));
});

test("calls at once go through one connection", async () => {
  await using server = await FakeServer.start(socket());
  await using client = attach();
  const all = await Promise.all([...Array.from({ length: 20 }, () => client.ping()), client.describeAll(paths(9))]);
  assert.equal(all.length, 21);
  assert.equal(server.connections, 1);
});
