/** The client against `vlmd serve` itself, with the deterministic fake in place of a model. */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Client, ConnectionLostError } from "../src/index.js";
import type { Batch, ClientOptions, Frame, StartupEvent } from "../src/index.js";
import { socketFolder } from "../src/paths.js";
import { COMMAND, NO_DAEMON, REPOSITORY, leaveNothing, png, runIn, useFolder, writePictures } from "./support/scene.js";
import { isGone, processState, sleep, until } from "./support/waiting.js";

const folder = useFolder();
leaveNothing();

const options = { skip: NO_DAEMON };
const own = (model = "fake", more: ClientOptions = {}): Client => new Client({ model, command: COMMAND, ...more });
const spools = (): string[] => readdirSync(socketFolder()).filter((name) => name.startsWith("spool-"));

test("describe", options, async () => {
  const images = writePictures(folder(), 20);
  const client = own();
  const frames = await client.describeAll(images.map((path) => ({ path, timestamp: 1.5, id: path })));
  assert.deepEqual(frames.map((frame) => frame.id), images);
  assert.ok(frames.every((frame) => frame.ok && frame.timestamp === 1.5 && frame.description !== ""));
  assert.equal(new Set(frames.map((frame) => frame.description)).size, 20);
  const [missing] = await client.describeAll([join(folder(), "none")]);
  assert.deepEqual([missing?.ok, missing?.code], [false, "image_not_found"]);
  await assert.rejects(client.describeAll(images, { model: "another" }), { name: "ModelError", code: "model_not_loaded" });
  const [record] = await client.describeAll(images.slice(0, 1), {
    schema: { type: "object", properties: { title: { type: "string" } }, required: ["title"] },
  });
  assert.equal(typeof (record?.record as { title: unknown }).title, "string");
  assert.equal((await client.describeAll(images, { mode: "interleaved" })).length, 20);
  const { pid, owned } = await client.status();
  assert.ok(owned);
  await client.close();
  assert.ok(await isGone(pid));
});

/** Screens of the demonstration's own world, which its model knows. */
function drawScreens(into: string, count: number): string[] {
  const code = `import sys
from pathlib import Path
from vlmd_bridge.demo import iter_recording
for at, frame in enumerate(iter_recording(1, ${count})):
    frame.image.save(Path(sys.argv[1]) / f"{at:03}.png")`;
  runIn("/", COMMAND[0] ?? "", "-P", "-c", code, into);
  return readdirSync(into).sort().map((name) => join(into, name));
}

for (const model of ["fake:step_ms=5", "demo"]) {
  const trained = existsSync(join(REPOSITORY, "bridge", "vlmd_bridge", "demo", "model", "config.json"));
  const skip = model === "demo" && !trained ? "the demonstration's model is not in this checkout" : NO_DAEMON;
  test(`${model}: SIGKILL in the middle of 48 frames: 48 results, none twice, none missing, in order`, { skip }, async () => {
    const images = model === "demo" ? drawScreens(folder(), 48) : writePictures(folder(), 48);
    await using client = own(model);
    const { pid } = await client.hello();
    const batches: Batch[] = [];
    for await (const batch of client.describe(images)) {
      batches.push(batch);
      if (batch.batch === 6) process.kill(pid, "SIGKILL");
    }
    const frames = batches.flatMap((batch) => batch.results);
    assert.deepEqual(frames.map((frame) => frame.index), images.map((_, at) => at));
    assert.deepEqual(frames.map((frame) => frame.imagePath), images);
    assert.ok(frames.every((frame) => frame.ok && frame.activity !== ""));
    assert.deepEqual(batches.map((batch) => batch.progress), batches.map((_, at) => ({ current: 4 * (at + 1), total: 48 })));
    const second = (await client.hello()).pid;
    assert.notEqual(second, pid);
    const { framesDone } = await client.status();
    assert.ok(framesDone <= 24, `the second daemon inferred ${framesDone} frames`);
    console.log(`# ${model}: killed after 24 of 48 frames; the second daemon inferred ${framesDone}; 48 results, in order`);
  });
}

test("a recording in several requests: what shows nothing new is inferred once", options, async () => {
  await using client = own();
  // No two files are equal: what follows the picture is not of it.
  const [dark, light] = [png(64, 64, [10, 10, 10]), png(64, 64, [99, 99, 99])];
  async function* screen(): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < 12; at++) {
      await sleep(300); // longer than a request is waited for
      yield Buffer.concat([at < 6 ? dark : light, Buffer.from(String(at))]);
    }
  }
  const frames: Frame[] = [];
  for await (const { results } of client.describe(screen(), { batchSize: 1, dedupe: true })) frames.push(...results);
  assert.deepEqual(frames.map((frame) => frame.index), frames.map((_, at) => at));
  assert.deepEqual(
    frames.map((frame) => frame.duplicateOf ?? null),
    [null, 0, 0, 0, 0, 0, null, 6, 6, 6, 6, 6],
  );
  const { framesDone, framesDuplicate } = await client.status();
  assert.equal(framesDone - (framesDuplicate ?? 0), 2);
});

test("the next call finds a dead connection and recovers", options, async () => {
  await using client = own("fake");
  const { pid } = await client.hello();
  process.kill(pid, "SIGSTOP"); // it takes the question, and dies before it answers
  const asked = client.ping();
  process.kill(pid, "SIGKILL");
  assert.ok(await asked);
  assert.notEqual((await client.hello()).pid, pid);
  process.kill((await client.hello()).pid, "SIGKILL");
  assert.ok(await client.status());
});

test("a killed daemon is told of within a second", options, async () => {
  const images = writePictures(folder(), 24);
  await using client = own("fake:step_ms=20", { resume: false });
  const { pid } = await client.hello();
  const generation = client.generate("x", { maxTokens: 400 });
  await generation.next();
  const jobs = [client.describeAll(images), generation.text()].map((job) => job.catch((error: unknown) => error));
  await sleep(50);
  const killedMs = performance.now();
  process.kill(pid, "SIGKILL");
  for (const error of await Promise.all(jobs)) {
    assert.ok(error instanceof ConnectionLostError, String(error));
    assert.match(error.message, /was ended by SIGKILL[^]*last log lines/);
  }
  const ms = performance.now() - killedMs;
  assert.ok(ms < 1_000, `${ms} ms`);
  console.log(`# a killed daemon was told of after ${Math.round(ms)} ms`);
});

test("pictures in memory go by files that are gone afterwards", options, async () => {
  await using client = own();
  const before = spools();
  const pictures = Array.from({ length: 12 }, (_, at) => png(64, 64, [at * 20, 0, 0]));
  const named = pictures.map((data, at) => (at % 2 ? data : { data, id: `frame ${at}` }));
  const frames = await client.describeAll(named);
  assert.ok(frames.every((frame) => frame.ok && frame.imagePath === ""));
  assert.equal(new Set(frames.map((frame) => frame.description)).size, 12);
  assert.equal(frames[2]?.id, "frame 2");
  for await (const _ of client.describe(pictures, { batchSize: 1 })) break;
  const text = await client.generate("What is it?", { images: pictures.slice(0, 1) }).text();
  assert.ok(text.length > 0);
  const [mine] = spools().filter((name) => !before.includes(name));
  await until(() => readdirSync(join(socketFolder(), mine ?? "")).length === 0, "an empty spool");
  await client.close();
  assert.deepEqual(spools(), before);
});

test("what a client left that was killed is swept by the next", options, async () => {
  await using client = own();
  await client.hello(); // makes the folder
  const stale = join(socketFolder(), `spool-${2 ** 22 - 1}-0a0b0c0d`);
  mkdirSync(stale, { mode: 0o700 });
  await using next = own();
  await next.hello();
  assert.ok(!existsSync(stale));
});

test("generate and countTokens", options, async () => {
  await using client = own();
  const generation = client.generate("Tell me something.", { maxTokens: 40, temperature: 1, seed: 7 });
  let text = "";
  for await (const delta of generation) text += delta.text;
  const result = await generation.result();
  assert.equal(text, result.text);
  assert.equal(generation.textSoFar, text);
  assert.ok(["stop", "length"].includes(result.finishReason) && result.usage.completionTokens > 0);
  assert.equal(await client.generate("Tell me something.", { maxTokens: 40, temperature: 1, seed: 7 }).text(), text);
  const messages = [{ role: "user", content: [{ type: "text", text: "What is it?" }, { type: "image", data: png(64, 64, [1, 2, 3]) }] }] as const;
  assert.ok((await client.generate(messages).text()).length > 0);
  const count = await client.countTokens("Tell me something.", { maxTokens: 10 });
  assert.ok(count.fits && count.promptTokens > 0 && count.contextTokens > count.promptTokens);
  await assert.rejects(client.generate("x", { temperature: 9 }).text(), { name: "InvalidRequestError", code: "invalid_params" });
  await assert.rejects(client.generate("x", { images: ["/none.png"] }).text(), { code: "image_not_found" });
});

test("to leave a loop frees the daemon", options, async () => {
  const images = writePictures(folder(), 60);
  await using client = own("fake:step_ms=20");
  for await (const _ of client.describe(images)) break;
  await until(async () => (await client.status()).queue.jobs === 0);
  assert.ok((await client.status()).framesDone < 60);
  for await (const _ of client.generate("x", { maxTokens: 500 })) break;
  await until(async () => (await client.status()).queue.jobs === 0);
});

test("a start, step by step; a daemon that runs already is at once ready", options, async () => {
  await using client = own("fake:load_s=0.6");
  const events: StartupEvent[] = [];
  for await (const event of client.start()) events.push(event);
  const phases = events.map((event) => event.phase);
  assert.deepEqual([...new Set(phases)], ["finding", "starting", "loading", "ready"]);
  assert.equal(phases.filter((phase) => phase === "ready").length, 1);
  const fractions = events.flatMap((event) => (event.phase === "loading" ? (event.fraction ?? []) : []));
  assert.deepEqual(fractions, [...fractions].sort((a, b) => a - b));
  const again: StartupEvent[] = [];
  for await (const event of client.start()) again.push(event);
  assert.deepEqual(again.map((event) => event.phase), ["ready"]);
  await using left = own("fake:load_s=60");
  for await (const _ of left.start()) break; // no error, and nobody waits for it any more
});

test("a load restarts the deadline, and a model that cannot be loaded says so", options, async () => {
  const images = writePictures(folder(), 4);
  await using slow = own("fake:load_s=1.5", { timeouts: { firstByteMs: 1_000 } });
  assert.equal((await slow.ping()).state, "loading");
  assert.equal((await slow.describeAll(images)).length, 4);
  await using failing = own("fake:broken=1");
  await assert.rejects(failing.describeAll(images), { code: "model_invalid" });
  await using splash = own("fake:broken=1");
  await assert.rejects(async () => {
    for await (const _ of splash.start()) continue;
  }, { code: "model_invalid" });
  await using none = own("/nowhere/at/all");
  await assert.rejects(none.ping(), { name: "StartError", code: "model_not_found", message: /\/nowhere\/at\/all/ });
});

test("a daemon that is stopped is given up at the deadline, and had again when it goes on", options, async () => {
  const images = writePictures(folder(), 8);
  await using client = own("fake", { timeouts: { connectMs: 300 } });
  const { pid } = await client.hello();
  process.kill(pid, "SIGSTOP");
  await until(async () => ["T", ""].includes(await processState(pid)));
  await assert.rejects(client.ping(), { name: "DeadlineError" });
  process.kill(pid, "SIGCONT");
  assert.equal((await client.describeAll(images)).length, 8);
  assert.equal((await client.hello()).pid, pid);
});

test("the log has both sides' lines, prefixed", options, async () => {
  const lines: string[] = [];
  const client = own("fake", { log: (line) => lines.push(line) });
  await client.ping();
  await client.close();
  assert.ok(lines.every((line) => line.startsWith("[VLM] ")));
  assert.ok(lines.some((line) => line.includes("Started daemon")) && lines.some((line) => line.includes("[MLX]")));
  assert.ok(!readFileSync(join(REPOSITORY, "clients", "typescript", "package-lock.json"), "utf8").includes('"resolved"'));
});
