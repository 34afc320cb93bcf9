/** The examples, run as a reader runs them. Electron's are type-checked by `npm run check`. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { COMMAND, NO_DAEMON, PACKAGE, useFolder, writePictures } from "./support/scene.js";

const folder = useFolder();
const options = { skip: NO_DAEMON };

/** Run an example; `interruptAt` is what it prints before it gets Ctrl-C. */
function run(name: string, args: string[], interruptAt?: string): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const env = { ...process.env, VLMD_COMMAND: COMMAND.map((word) => `'${word}'`).join(" ") };
  const child = spawn(process.execPath, [join(PACKAGE, "examples", name), ...args], { env });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data: Buffer) => {
    stdout += data.toString();
    if (interruptAt !== undefined && stdout.includes(interruptAt)) child.kill("SIGINT");
  });
  child.stderr.on("data", (data: Buffer) => (stderr += data.toString()));
  return new Promise((resolve) => child.on("close", (status) => resolve({ status, stdout, stderr })));
}

test("describe-folder: a line for each picture, and progress", options, async () => {
  writePictures(folder(), 10);
  const { status, stdout, stderr } = await run("describe-folder.mjs", [folder(), "fake"]);
  assert.equal(status, 0, stderr);
  assert.equal(stdout.trim().split("\n").length, 10);
  assert.match(stderr, /4 of 10 pictures.*\n.*8 of 10[^]*10 of 10/);
});

test("describe-folder: a bad picture fails alone; no folder, no daemon and Ctrl-C have statuses of their own", options, async () => {
  writePictures(folder(), 24);
  writeFileSync(join(folder(), "bad.png"), "no picture");
  const { status, stdout } = await run("describe-folder.mjs", [folder(), "fake"]);
  assert.equal(status, 1);
  assert.match(stdout, /bad.png\tfailed/);
  assert.equal((await run("describe-folder.mjs", [])).status, 2);
  assert.equal((await run("describe-folder.mjs", [folder(), "/no/model"])).status, 3);
  const interrupted = await run("describe-folder.mjs", [folder(), "fake:step_ms=30"], "003.png");
  assert.equal(interrupted.status, 1);
  assert.match(interrupted.stderr, /interrupted/);
});

test("host-app: its daemon is killed halfway, and it finishes all the same", options, async () => {
  const { status, stdout, stderr } = await run("host-app.mjs", [...writePictures(folder(), 48), "--model", "fake:step_ms=3"]);
  assert.equal(status, 0, stdout + stderr);
  assert.match(stdout, /24 of 48\nkilled the daemon[^]*48 of 48\n48 of 48 frames, each once and in order/);
});
