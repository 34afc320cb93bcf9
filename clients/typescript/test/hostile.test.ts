/** Whatever answers at the socket, the caller gets a typed error, nothing is left, and the next call starts afresh. */

import assert from "node:assert/strict";
import { chmodSync, chownSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";

import {
  Client,
  ConnectError,
  ConnectionLostError,
  DeadlineError,
  InternalError,
  InvalidRequestError,
  ModelError,
  ProtocolError,
  RequestError,
  ShuttingDownError,
  UnsafeSocketError,
} from "../src/index.js";
import type { VlmdError } from "../src/index.js";
import { ensureFolder } from "../src/paths.js";
import { FakeServer, helloResult, helloThen, obedient } from "./support/fake-server.js";
import type { Dialogue } from "./support/fake-server.js";
import { leaveNothing, useFolder } from "./support/scene.js";

const folder = useFolder();
leaveNothing();

const CONNECT_MS = 300;
const socket = (): string => join(folder(), "s");
const attach = (): Client => new Client({ socket: socket(), start: false, timeouts: { connectMs: CONNECT_MS } });

function sends(data: string | Uint8Array, stalls = false): Dialogue {
  return async (talk) => {
    await talk.expect();
    talk.send(data);
    if (stalls) await talk.stall();
  };
}

const refuses = (code: string): Dialogue => async (talk) => talk.refuse(await talk.expect(), code);

const HELLO = JSON.stringify({ id: 1, result: helloResult(), done: true });
const OTHER = `${JSON.stringify({ id: 1, result: helloResult({ protocol: 2 }), done: true })}\n`;

type ErrorClass = abstract new (...args: never[]) => VlmdError;

const GREETINGS: [string, Dialogue, ErrorClass, RegExp][] = [
  ["garbage", sends("garbage\n"), ProtocolError, /garbage/],
  ["another protocol altogether", sends("HTTP/1.1 400 Bad Request\r\n\r\n"), ProtocolError, /HTTP\/1.1/],
  ["bytes that are no text", sends(Uint8Array.of(0, 255, 10)), ProtocolError, /no daemon sends/],
  ["JSON that is no hello", sends('{"id":1,"result":{},"done":true}\n'), ProtocolError, /no vlmd daemon/],
  ["another protocol number", sends(OTHER), ProtocolError, /speaks protocol 2/],
  ["a refusal of ours", refuses("unsupported_protocol"), ProtocolError, /refused/],
  ["a hang-up", sends(""), ConnectionLostError, /closed the connection/],
  ["a hang-up half-way through a line", sends(HELLO.slice(0, 50)), ConnectionLostError, /closed the connection/],
  ["silence half-way through a line", sends(HELLO.slice(0, 50), true), DeadlineError, /did not answer hello/],
  ["silence", sends("", true), DeadlineError, /did not answer hello/],
  ["a line over the limit", sends(Buffer.alloc(33 << 20, " "), true), ProtocolError, /over 33554432 bytes/],
];

for (const [what, dialogue, Class, message] of GREETINGS) {
  test(`greeted with ${what}`, async () => {
    await using server = await FakeServer.start(socket(), dialogue, obedient());
    await using client = attach();
    const startedMs = performance.now();
    const error = await client.ping().catch((thrown: unknown) => thrown);
    assert.ok(error instanceof Class, String(error));
    assert.match((error as VlmdError).message, message);
    if (error instanceof DeadlineError) assert.equal(error.phase, "connect");
    assert.ok(performance.now() - startedMs < CONNECT_MS + 700);
    assert.equal((await client.ping()).state, "ready");
    assert.equal(server.connections, 2);
  });
}

for (const data of ["garbage\n", '{"id":2,"batch":1,"results":[],"done":true}\n', '{"id":2,"result":{},"done":true}\n']) {
  test(`describe is answered with ${data.trim()}`, async () => {
    await using _server = await FakeServer.start(socket(), helloThen(sends(data, true)), obedient());
    await using client = attach();
    await assert.rejects(client.describeAll(["/a.png"]), ProtocolError);
    assert.equal((await client.ping()).state, "ready");
  });
}

test("ping and generate are answered with lines of other methods", async () => {
  await using _server = await FakeServer.start(socket(), helloThen(sends('{"id":2,"result":{"state":1},"done":true}\n', true)));
  await using client = attach();
  await assert.rejects(client.ping(), ProtocolError);
  await assert.rejects(client.generate("x").text(), ProtocolError);
  await assert.rejects(client.countTokens("x"), ProtocolError);
});

for (const [code, Class] of Object.entries({
  invalid_params: InvalidRequestError,
  model_not_loaded: ModelError,
  shutting_down: ShuttingDownError,
  internal: InternalError,
  image_not_found: InvalidRequestError,
  of_tomorrow: RequestError,
})) {
  test(`code ${code} becomes ${Class.name}`, async () => {
    await using _server = await FakeServer.start(socket(), helloThen(refuses(code)));
    await using client = attach();
    const error = await client.describeAll(["/a.png"]).catch((thrown: unknown) => thrown);
    assert.equal((error as VlmdError).constructor, Class);
    assert.equal((error as VlmdError).code, code);
    assert.equal((error as VlmdError).name, Class.name);
  });
}

test("nobody there", async () => {
  await using client = attach();
  await assert.rejects(client.ping(), { name: "ConnectError", message: /no socket/, code: "connect_failed" });
});

test("a stale socket", async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(socket(), resolve));
  // Node removes the path when it closes: keep it by another name, and put it back.
  const { renameSync } = await import("node:fs");
  renameSync(socket(), `${socket()}.kept`);
  await new Promise((resolve) => server.close(resolve));
  renameSync(`${socket()}.kept`, socket());
  await using client = attach();
  await assert.rejects(client.ping(), { name: "ConnectError", message: /ECONNREFUSED/ });
});

test("a file at the path, kept as it is", async () => {
  writeFileSync(socket(), "precious");
  for (const client of [attach(), new Client({ socket: socket(), command: "false" })]) {
    await assert.rejects(client.ping(), { name: "UnsafeSocketError", message: /not a socket/ });
    await client.close();
  }
  assert.equal(readFileSync(socket(), "utf8"), "precious");
});

test("a socket of another user is not spoken to", { skip: process.geteuid?.() !== 0 && "only root can give a file away" }, async () => {
  await using server = await FakeServer.start(socket());
  chownSync(socket(), 12345, -1);
  await using client = attach();
  await assert.rejects(client.ping(), { name: "UnsafeSocketError", message: /belongs to user 12345/ });
  assert.equal(server.connections, 0);
});

test("a private folder that is not private", async () => {
  const open = join(folder(), "open");
  mkdirSync(open);
  chmodSync(open, 0o777);
  await assert.rejects(ensureFolder(open), { name: "UnsafeSocketError", message: /mode 0777.*chmod 700/ });
  const link = join(folder(), "link");
  symlinkSync("/tmp", link);
  await assert.rejects(ensureFolder(link), { message: /symbolic link/ });
  writeFileSync(join(folder(), "file"), "");
  await assert.rejects(ensureFolder(join(folder(), "file")), { message: /no directory/ });
  await assert.rejects(ensureFolder(join(folder(), "no", "where")), { name: "UnsafeSocketError", message: /ENOENT/ });
  const mask = process.umask(0o777);
  try {
    await ensureFolder(join(folder(), "made"));
  } finally {
    process.umask(mask);
  }
  await ensureFolder(join(folder(), "made"));
});

test("options that contradict each other, and a path that is too long", () => {
  assert.throws(() => new Client({ socket: `/tmp/${"x".repeat(100)}` }), UnsafeSocketError);
  assert.throws(() => new Client({ socket: "/tmp/s", shared: false }), TypeError);
  assert.throws(() => new Client({ start: false }), TypeError);
  assert.throws(() => new Client({ timeouts: { connectMs: 0 } }), RangeError);
});

test("a log hook and a listener that throw end nothing", async () => {
  await using _server = await FakeServer.start(socket());
  const warned: string[] = [];
  const onWarning = (warning: Error): void => void warned.push(warning.message);
  process.on("warning", onWarning);
  const bad = (): never => {
    throw new Error("bad hook");
  };
  await using client = new Client({ socket: socket(), log: bad, onStartup: bad });
  assert.equal((await client.ping()).state, "ready");
  await new Promise((resolve) => setImmediate(resolve));
  process.off("warning", onWarning);
  assert.ok(warned.some((text) => text.includes("bad hook")));
});

test("nobody is left waiting when nothing can be connected", async () => {
  await using client = attach();
  const calls = [client.ping(), client.status(), client.hello(), client.describeAll(["/a"]), client.generate("x").text()];
  for (const result of await Promise.allSettled(calls)) {
    assert.equal(result.status === "rejected" && result.reason instanceof ConnectError, true);
  }
});
