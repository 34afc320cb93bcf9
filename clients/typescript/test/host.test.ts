/** The process that holds a client: an idle client does not keep it alive, a busy one does, and no daemon outlives it. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

import { FakeServer } from "./support/fake-server.js";
import { COMMAND, NO_DAEMON, PACKAGE, useFolder, writePictures } from "./support/scene.js";
import { isGone, until } from "./support/waiting.js";

const folder = useFolder();
const options = { skip: NO_DAEMON };
const INDEX = pathToFileURL(join(PACKAGE, "build", "src", "index.js")).href;

interface Ended {
  readonly status: number | null;
  readonly signal: string | null;
  readonly output: string;
  readonly ms: number;
}

/** Run a host with `client` on the fake model; `onOutput` sees what it has printed so far. */
function host(code: string, settings: object = { model: "fake", command: COMMAND }, onOutput?: (text: string, kill: () => void) => void): Promise<Ended> {
  const text = `import { Client } from ${JSON.stringify(INDEX)};
    const client = new Client(${JSON.stringify(settings)});
    ${code}`;
  const startedMs = performance.now();
  const child = spawn(process.execPath, ["--input-type=module", "--eval", text], { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  const take = (data: Buffer): void => {
    output += data.toString();
    onOutput?.(output, () => void child.kill("SIGKILL"));
  };
  child.stdout.on("data", take);
  child.stderr.on("data", take);
  return new Promise((resolve) => {
    child.on("close", (status, signal) => resolve({ status, signal, output, ms: performance.now() - startedMs }));
  });
}

const PID = /pid (\d+)/;
const pidIn = (output: string): number => Number(PID.exec(output)?.[1]);

test("an idle client does not keep its host alive, and the daemon ends with it", options, async () => {
  const { status, output, ms } = await host("console.log('pid', (await client.hello()).pid); await client.ping();");
  assert.equal(status, 0, output);
  assert.ok(ms < 10_000, `${ms} ms`);
  const startedMs = performance.now();
  await until(() => isGone(pidIn(output)), "the daemon's end");
  console.log(`# the daemon ended ${Math.round(performance.now() - startedMs)} ms after its host`);
});

test("an idle client of somebody else's daemon does not either, nor one that never was used", async () => {
  await using _server = await FakeServer.start(join(folder(), "s"));
  const settings = { socket: join(folder(), "s"), start: false };
  assert.equal((await host("await client.ping();", settings)).status, 0);
  assert.equal((await host("", settings)).status, 0);
});

test("a busy client keeps its host alive to the end", options, async () => {
  const images = JSON.stringify(writePictures(folder(), 12));
  const code = `client.describeAll(${images}).then((frames) => console.log(frames.length, "frames"));
    client.generate("x").text().then(() => console.log("text"));`;
  const { status, output } = await host(code, { model: "fake:step_ms=10,load_s=0.3", command: COMMAND });
  assert.equal(status, 0, output);
  assert.ok(output.includes("12 frames") && output.includes("text"), output);
});

test("an abandoned start does not keep its host alive", options, async () => {
  const code = "for await (const event of client.start()) { if (event.phase === 'starting') { console.log('pid', event.pid); break; } }";
  const { status, output, ms } = await host(code, { model: "fake:load_s=60", command: COMMAND });
  assert.equal(status, 0, output);
  assert.ok(ms < 10_000);
  await until(() => isGone(pidIn(output)), "the daemon's end");
});

for (const [how, code] of [
  ["is killed", "console.log('pid', (await client.hello()).pid); await new Promise((resolve) => setTimeout(resolve, 60_000));"],
  ["exits at once", "console.log('pid', (await client.hello()).pid); client.ping(); process.exit(7);"],
  ["throws", "console.log('pid', (await client.hello()).pid); throw new Error('host');"],
]) {
  test(`no daemon is left of a host that ${how}`, options, async () => {
    const { status, signal, output } = await host(code ?? "", undefined, (text, kill) => {
      if (how === "is killed" && PID.test(text)) kill();
    });
    assert.deepEqual([status, signal], how === "is killed" ? [null, "SIGKILL"] : [how === "throws" ? 1 : 7, null], output);
    await until(() => isGone(pidIn(output)), "the daemon's end", 2_000);
  });
}

test("a call that fails is the caller's to catch, and no unhandled rejection besides", options, async () => {
  const code = `process.on("unhandledRejection", (error) => { console.log("unhandled", error); });
    const controller = new AbortController();
    const calls = [client.ping(), client.hello({ signal: controller.signal }), client.generate("x").text(), client.describeAll(["/a"])];
    const images = client.describe((async function* () { throw new Error("source"); })());
    calls.push(images.next());
    controller.abort();
    const results = await Promise.allSettled(calls);
    console.log(results.map((result) => result.status).join());
    await client.close();`;
  const { status, output } = await host(code, { command: ["/nowhere/vlmd"] });
  assert.equal(status, 0, output);
  assert.equal(output.trim(), Array(5).fill("rejected").join());
});
