#!/usr/bin/env node
// A host app whose daemon is killed halfway: it gets every frame all the same, once and in order.
//
//     node host-app.mjs PICTURE… [--model MODEL]

import { parseArgs } from "node:util";

import { Client } from "vlmd";

const { values, positionals: pictures } = parseArgs({
  allowPositionals: true,
  options: { model: { type: "string", default: "demo" } },
});
if (pictures.length === 0) {
  console.error("usage: node host-app.mjs PICTURE… [--model MODEL]");
  process.exit(2);
}

const client = new Client({
  model: values.model,
  onStartup: (event) => console.log(event.phase === "starting" ? `starting a daemon, pid ${event.pid}` : event.phase),
});

/** @type {number[]} */
const indices = [];
let killed = false;
for await (const { results, progress } of client.describe(pictures)) {
  indices.push(...results.map((frame) => frame.index));
  console.log(`${progress.current} of ${progress.total}`);
  if (!killed && progress.current >= pictures.length / 2) {
    killed = true;
    const { pid } = await client.hello();
    process.kill(pid, "SIGKILL"); // a crash, an impatient user, the system short of memory
    console.log(`killed the daemon, pid ${pid}`);
  }
}
await client.close();

const complete = indices.length === pictures.length && indices.every((index, at) => index === at);
console.log(`${indices.length} of ${pictures.length} frames${complete ? ", each once and in order" : ": WRONG"}`);
process.exitCode = complete ? 0 : 1;
