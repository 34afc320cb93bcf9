#!/usr/bin/env node
// Describes the pictures of a folder, with a progress line.
//
//     node describe-folder.mjs FOLDER [MODEL]
//
// One picture a line on standard output; the progress is on standard error. Ends with status 1 where a picture failed,
// 2 for wrong arguments, 3 where there is no daemon. Ctrl-C cancels what is under way.

import { readdir } from "node:fs/promises";
import { join } from "node:path";

import { Client, DaemonError } from "vlmd";

const PICTURES = /\.(png|jpe?g|webp|gif|bmp|tiff?|avif)$/i;

const [folder, model = "demo"] = process.argv.slice(2);
if (folder === undefined) {
  console.error("usage: node describe-folder.mjs FOLDER [MODEL]");
  process.exit(2);
}

/** @param {string} text */
const progressLine = (text) => process.stderr.write(process.stderr.isTTY ? `\r\u001b[K${text}` : `${text}\n`);

const interrupted = new AbortController();
process.once("SIGINT", () => interrupted.abort(new Error("interrupted")));
const { signal } = interrupted;

const client = new Client({ model });
let failed = 0;
try {
  const names = (await readdir(folder)).filter((name) => PICTURES.test(name)).sort();
  for await (const event of client.start({ signal })) {
    if (event.phase === "loading") progressLine(`loading ${event.stage ?? ""} ${Math.round((event.fraction ?? 0) * 100)} %`);
    else progressLine(event.phase);
  }
  const startedMs = performance.now();
  const batches = client.describe(
    names.map((name) => join(folder, name)),
    {
      signal,
      onProgress({ current, total }) {
        const perSecond = (1000 * current) / (performance.now() - startedMs);
        progressLine(`${current} of ${total ?? "?"} pictures, ${perSecond.toFixed(1)} a second`);
      },
    },
  );
  for await (const { results } of batches) {
    for (const frame of results) {
      if (!frame.ok) failed += 1;
      console.log(`${names[frame.index]}\t${frame.ok ? frame.description : `failed: ${frame.error}`}`);
    }
  }
  if (process.stderr.isTTY) process.stderr.write("\n");
  process.exitCode = failed > 0 ? 1 : 0;
} catch (error) {
  console.error(`\n${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = error instanceof DaemonError ? 3 : 1;
} finally {
  await client.close();
}
