/** The conformance vectors that are about clients; `protocol/vlmd_protocol/vectors/v1/README.md` describes them. */

import assert from "node:assert/strict";
import { chmodSync, existsSync, lchownSync, lstatSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { after, test } from "node:test";

import { Ajv2020 } from "ajv/dist/2020.js";

import { Client, ConnectError, ProtocolError, UnsafeSocketError } from "../src/index.js";
import { FrameTooLarge, LineDecoder, encodeLine } from "../src/codec.js";
import { checkFolder, checkLength, checkSocket, codeOf, ensureFolder, sharedSocketPath, socketFolder } from "../src/paths.js";
import { decodeReply } from "../src/replies.js";
import { Startup } from "../src/startup.js";
import { FakeServer, helloThen, obedient } from "./support/fake-server.js";
import { leaveNothing, runIn, useFolder } from "./support/scene.js";
import { PROTOCOL, readVectors, toBytes } from "./support/vectors.js";
import type { Bytes } from "./support/vectors.js";

interface Made {
  readonly kind: "missing" | "directory" | "file" | "fifo" | "socket" | "symlink";
  readonly target?: Made["kind"];
  readonly mode?: string;
  readonly owner?: string;
}

interface Case {
  readonly name: string;
  readonly input: Bytes;
  readonly lines: Bytes[];
  readonly before: Bytes[];
  readonly rest?: Bytes;
  readonly max_frame_bytes?: number;
  readonly line: Bytes;
  readonly fields: object;
  readonly reply: Record<string, unknown>;
  readonly schema?: string;
  readonly code: string;
  readonly asked: Record<string, string>;
  readonly needs?: string[];
  readonly make: Made;
  readonly umask?: string;
  readonly mode?: string;
  readonly outcome: string;
  readonly uid?: number;
  readonly folder?: string;
  readonly shared?: string;
  readonly path?: Bytes;
}

const folder = useFolder();
leaveNothing();

const counts = new Map<string, number>();
after(() => {
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  console.log(`# vectors: ${[...counts].map(([file, count]) => `${file} ${count}`).join(", ")}; ${total} in all`);
});

/** One test for each file: `each` runs one of its cases. */
function vectors(file: string, each: (vector: Case) => Promise<void> | void): void {
  test(file, async () => {
    for (const line of readVectors(file)) {
      const vector = JSON.parse(line) as Case;
      if (vector.needs?.includes("root") === true && process.geteuid?.() !== 0) continue;
      try {
        await each(vector);
      } catch (error) {
        throw new Error(`${file}.jsonl#${vector.name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
      }
      counts.set(file, (counts.get(file) ?? 0) + 1);
    }
  });
}

/** A stream whole, byte by byte, and in two parts at every offset (at 64, where it is long). */
function* feedings(stream: Buffer): Generator<Uint8Array[]> {
  yield [stream];
  yield Array.from(stream, (byte) => Uint8Array.of(byte));
  const step = stream.length > 2048 ? Math.ceil(stream.length / 64) : 1;
  for (let at = 1; at < stream.length; at += step) yield [stream.subarray(0, at), stream.subarray(at)];
}

function split(parts: Uint8Array[], limit: number | undefined): { lines: string[]; rest: string; tooLarge: boolean } {
  const decoder = new LineDecoder(limit);
  const lines: string[] = [];
  try {
    for (const part of parts) for (const line of decoder.feed(part)) lines.push(Buffer.from(line).toString("hex"));
  } catch (error) {
    assert.ok(error instanceof FrameTooLarge);
    return { lines, rest: "", tooLarge: true };
  }
  return { lines, rest: Buffer.from(decoder.rest()).toString("hex"), tooLarge: false };
}

const hex = (value: Bytes): string => toBytes(value).toString("hex");

vectors("decode/lines", ({ input, lines, rest = "", max_frame_bytes: limit }) => {
  for (const parts of feedings(toBytes(input))) {
    assert.deepEqual(split(parts, limit), { lines: lines.map(hex), rest: hex(rest), tooLarge: false });
  }
});

vectors("invalid/streams", ({ input, before, code, max_frame_bytes: limit }) => {
  assert.equal(code, "frame_too_large");
  for (const parts of feedings(toBytes(input))) {
    const { lines, tooLarge } = split(parts, limit);
    assert.deepEqual({ lines, tooLarge }, { lines: before.map(hex), tooLarge: true });
  }
});

vectors("decode/startup", ({ line, outcome }) => {
  const startup = new Startup();
  for (const progress of startup.receive(Buffer.concat([toBytes(line), Buffer.from("\n")]))) assert.ok(progress);
  const found = [startup.bound, startup.running, startup.over, startup.fatal !== undefined];
  const expected: Record<string, boolean[]> = {
    progress: [false, false, false, false],
    bound: [true, false, false, false],
    ready: [true, false, true, false],
    running: [false, true, true, false],
    fatal: [false, false, true, true],
    invalid: [false, false, true, true],
  };
  assert.deepEqual(found, expected[outcome]);
  assert.equal(startup.lines, outcome === "invalid" ? 0 : 1);
  if (outcome === "fatal") {
    assert.equal(startup.fatal?.code, (JSON.parse(toBytes(line).toString()) as { code: string }).code);
  }
});

vectors("decode/replies", ({ line, reply }) => {
  // To this client null is the same as missing.
  const expected = Object.fromEntries(Object.entries(reply).filter(([, value]) => value !== null));
  assert.deepEqual(decodeReply(toBytes(line)), expected);
});

vectors("encode/requests", ({ fields, line }) => {
  const bytes = Buffer.from(encodeLine(fields));
  assert.equal(bytes.indexOf(0x0a), bytes.length - 1);
  assert.deepEqual(JSON.parse(bytes.toString()), line as unknown);
});

vectors("invalid/lines", async ({ line, asked, code }) => {
  const method = asked["1"];
  // This client's `hello` has the id 1, so the call under test has the 2.
  const data = Buffer.concat([Buffer.from(toBytes(line).toString("latin1").replace('"id":1', '"id":2'), "latin1"), Buffer.from("\n")]);
  const path = join(folder(), "s");
  const hostile = helloThen(async (talk) => {
    await talk.expect();
    talk.send(data);
    await talk.stall();
  });
  await using server = await FakeServer.start(path, hostile, obedient());
  await using client = new Client({ socket: path, start: false });
  const call =
    method === "describe_images" ? client.describeAll(["/a.png"]) : method === "generate" ? client.generate("x").text() : client.ping();
  const error = await call.then(
    (value) => assert.fail(`no error, but ${JSON.stringify(value)}`),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof ProtocolError, String(error));
  assert.equal(error.code, code);
  assert.equal((await client.ping()).state, "ready");
  assert.equal(server.connections, 2);
});

/** Put at `path` what a case describes. */
async function make(path: string, { kind, target, mode, owner }: Made): Promise<() => Promise<void>> {
  let undo = async (): Promise<void> => rmSync(path, { recursive: true, force: true });
  if (kind === "directory") mkdirSync(path);
  else if (kind === "file") writeFileSync(path, "");
  else if (kind === "fifo") runIn("/", "mkfifo", path);
  else if (kind === "symlink") {
    const end = await make(`${path}.target`, { kind: target ?? "missing", ...(target === "directory" && { mode: "0700" }) });
    symlinkSync(`${path}.target`, path);
    undo = async () => {
      rmSync(path);
      await end();
    };
  } else if (kind === "socket") {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(path, resolve));
    undo = async () => {
      await new Promise((resolve) => server.close(resolve));
    };
  }
  if (mode !== undefined) chmodSync(path, parseInt(mode, 8));
  if (owner === "other") lchownSync(path, 12345, 12345);
  return undo;
}

async function outcome(check: () => Promise<void> | void): Promise<string> {
  try {
    await check();
    return "ok";
  } catch (error) {
    if (error instanceof UnsafeSocketError) return error.code;
    const cause = error instanceof ConnectError ? error.cause : error;
    if (codeOf(cause) === "ENOENT") return "missing";
    throw error;
  }
}

async function checkMade(vector: Case, check: (path: string) => Promise<void>): Promise<void> {
  const path = join(folder(), "p");
  const undo = await make(path, vector.make);
  const mask = process.umask(parseInt(vector.umask ?? "0022", 8));
  try {
    assert.equal(await outcome(() => check(path)), vector.outcome);
  } finally {
    process.umask(mask);
    if (vector.mode !== undefined) {
      assert.equal((lstatSync(path).mode & 0o7777).toString(8).padStart(4, "0"), vector.mode);
    }
    await undo();
    if (existsSync(path)) rmSync(path, { recursive: true });
  }
}

vectors("paths/folder", (vector) => checkMade(vector, checkFolder));
vectors("paths/ensure", (vector) => checkMade(vector, ensureFolder));
vectors("paths/socket", (vector) => checkMade(vector, checkSocket));
vectors("paths/length", async ({ path = "", outcome: expected }) => {
  assert.equal(await outcome(() => checkLength(toBytes(path).toString())), expected);
});
vectors("paths/names", ({ uid, folder: expected, shared }) => {
  if (uid === undefined) return; // where a lock is, only a daemon knows
  assert.deepEqual([socketFolder(uid), sharedSocketPath(uid)], [expected, shared]);
});

// A second opinion on the schema: another validator, in another language.
const ajv = new Ajv2020({ strict: false });
const schema = JSON.parse(readFileSync(join(PROTOCOL, "schema", "v1.json"), "utf8")) as { $id: string };
ajv.addSchema(schema);

for (const file of ["decode/requests", "decode/replies"]) {
  test(`${file}, by the schema`, () => {
    let count = 0;
    for (const text of readVectors(file)) {
      const vector = JSON.parse(text) as Case;
      if (vector.schema === undefined) continue;
      const value: unknown = JSON.parse(toBytes(vector.line).toString());
      const valid = ajv.validate(`${schema.$id}#/$defs/${vector.schema}`, value);
      assert.ok(valid, `${file}.jsonl#${vector.name}: ${ajv.errorsText()}`);
      count += 1;
    }
    assert.ok(count > 0);
    counts.set(`${file} (schema)`, count);
  });
}

test("encode/lines, by the schema", () => {
  let count = 0;
  for (const text of readVectors("encode/lines")) {
    const { name, line, type } = JSON.parse(text) as Case & { type: string };
    assert.ok(ajv.validate(`${schema.$id}#/$defs/${type}`, line), `encode/lines.jsonl#${name}: ${ajv.errorsText()}`);
    count += 1;
  }
  counts.set("encode/lines (schema)", count);
});
