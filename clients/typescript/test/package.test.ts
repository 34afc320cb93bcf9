/** What npm would publish, installed into an empty project: from JavaScript, CommonJS and TypeScript. */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import * as vlmd from "../src/index.js";
import { PACKAGE, REPOSITORY, runIn, useFolder } from "./support/scene.js";

const folder = useFolder();

const manifest = JSON.parse(readFileSync(join(PACKAGE, "package.json"), "utf8")) as Record<string, unknown>;

const TSC = join(PACKAGE, "node_modules", "typescript", "bin", "tsc");

const TYPED = `import { Client, DeadlineError, type Batch, type ClientOptions, type StartupEvent } from "vlmd";

const options: ClientOptions = { model: "demo", timeouts: { connectMs: 100 }, log: (line: string) => console.log(line) };

export async function describe(signal: AbortSignal, pictures: AsyncIterable<Uint8Array>): Promise<number> {
  await using client = new Client(options);
  const events: AsyncIterable<StartupEvent> = client.start({ signal });
  for await (const event of events) if (event.phase === "loading") console.log(event.fraction?.toFixed());
  let frames = 0;
  for await (const batch of client.describe(pictures, { signal, onProgress: ({ current }) => console.log(current) })) {
    const { results }: Batch = batch;
    frames += results.filter((frame) => frame.ok && frame.topics.includes("x")).length;
  }
  const text: string = await client.generate("Hello", { temperature: 0.5 }).text();
  for await (const delta of client.generate([{ role: "user", content: text }])) console.log(delta.text, delta.reasoning);
  // @ts-expect-error: no such option
  client.describe([], { batchsize: 4 });
  // @ts-expect-error: a path, not a number
  client.describe([5]);
  return frames;
}

export const isLate = (error: unknown): boolean => error instanceof DeadlineError && error.phase === "start";
`;

test("npm pack, installed into an empty project", () => {
  const [packed] = JSON.parse(runIn(PACKAGE, "npm", "pack", "--json", "--pack-destination", folder())) as {
    filename: string;
    size: number;
    unpackedSize: number;
    files: { path: string }[];
  }[];
  assert.ok(packed);
  const names = packed.files.map((file) => file.path);
  assert.deepEqual(names.filter((name) => !/^(dist\/|README\.md$|LICENSE$|package\.json$)/.test(name)), []);
  for (const name of ["README.md", "LICENSE", "dist/index.js", "dist/index.d.ts"]) assert.ok(names.includes(name), name);
  console.log(`# package: ${packed.size} bytes packed, ${packed.unpackedSize} unpacked, ${names.length} files`);

  writeFileSync(join(folder(), "package.json"), JSON.stringify({ name: "empty", version: "1.0.0", private: true }));
  runIn(folder(), "npm", "install", "--offline", "--no-audit", "--no-fund", join(folder(), packed.filename));
  assert.deepEqual(readdirSync(join(folder(), "node_modules")).filter((name) => !name.startsWith(".")), ["vlmd"]);

  const use = "const client = new Client({ socket: '/tmp/none', start: false }); client.ping().catch((error) => console.log(error.code));";
  writeFileSync(join(folder(), "use.mjs"), `import { Client } from "vlmd"; ${use}`);
  assert.equal(runIn(folder(), process.execPath, "use.mjs").trim(), "connect_failed");
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major > 22 || (major === 22 && minor >= 12) || (major === 20 && minor >= 19)) {
    writeFileSync(join(folder(), "use.cjs"), `const { Client } = require("vlmd"); ${use}`);
    assert.equal(runIn(folder(), process.execPath, "--no-warnings", "use.cjs").trim(), "connect_failed");
  } else {
    console.log(`# Node ${process.versions.node} cannot require an ES module`);
  }

  writeFileSync(join(folder(), "use.mts"), TYPED);
  const strict = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--target", "es2022"];
  // Neither Node's types nor `skipLibCheck`: the declarations stand alone.
  runIn(folder(), process.execPath, TSC, ...strict, "--module", "nodenext", "use.mts");
  runIn(folder(), process.execPath, TSC, ...strict, "--module", "esnext", "--moduleResolution", "bundler", "use.mts");
});

test("the code of the READMEs is valid, for the types as well", () => {
  const blocks = [join(PACKAGE, "README.md"), join(REPOSITORY, "README.md")].flatMap((path) =>
    [...readFileSync(path, "utf8").matchAll(/^```js\n([^]*?)^```/gm)].map((match) => match[1] ?? ""),
  );
  assert.ok(blocks.length >= 3);
  const files = blocks.map((block, at) => {
    const known = block.includes("new Client") ? "" : 'import { Client } from "vlmd"; const client = new Client();\n';
    writeFileSync(join(folder(), `readme-${at}.mts`), `${known}declare const splash: { show(event: unknown): void };\n${block}`);
    return `readme-${at}.mts`;
  });
  writeFileSync(join(folder(), "package.json"), JSON.stringify({ name: "readme", private: true, type: "module" }));
  mkdirSync(join(folder(), "node_modules", "@types"), { recursive: true });
  symlinkSync(PACKAGE, join(folder(), "node_modules", "vlmd"));
  symlinkSync(join(PACKAGE, "node_modules", "@types", "node"), join(folder(), "node_modules", "@types", "node"));
  runIn(folder(), process.execPath, TSC, "--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck", ...files);
});

test("no dependency, one version, no address of a registry", () => {
  assert.equal(manifest["dependencies"], undefined);
  assert.equal(manifest["version"], vlmd.VERSION);
  const python = readFileSync(join(REPOSITORY, "bridge", "vlmd_bridge", "__init__.py"), "utf8");
  assert.match(python, new RegExp(`__version__ = "${vlmd.VERSION}"`));
  const lock = readFileSync(join(PACKAGE, "package-lock.json"), "utf8");
  assert.ok(!lock.includes('"resolved"') && !/registry/i.test(lock));
});

test("the exported names", () => {
  const errors = Object.keys(vlmd).filter((name) => name.endsWith("Error")).sort();
  // The same tree as Python's, whose names are in its module.
  const python = readFileSync(join(REPOSITORY, "protocol", "vlmd_protocol", "errors.py"), "utf8");
  const classes = [...python.matchAll(/^class (\w+Error)_?\(/gm)].map((match) => match[1]).sort();
  assert.deepEqual(errors, classes);
  for (const [, name = "", base = ""] of python.matchAll(/^class (\w+Error)_?\((\w+Error)/gm)) {
    const exported = vlmd as unknown as Record<string, new () => Error>;
    assert.equal(Object.getPrototypeOf(exported[name]), exported[base], `${name} is a ${base}`);
  }
  assert.deepEqual(Object.keys(vlmd).filter((name) => !name.endsWith("Error")).sort(), ["Client", "PROTOCOL_VERSION", "VERSION"]);
});

test("one noun per file, under about 250 lines", () => {
  const lines = readdirSync(join(PACKAGE, "src"))
    .filter((name) => !name.endsWith(".gen.ts"))
    .map((name) => readFileSync(join(PACKAGE, "src", name), "utf8").split("\n").length)
    .sort((a, b) => a - b);
  assert.ok((lines.at(-1) ?? 0) <= 260);
  console.log(`# ${lines.length} source files, median ${lines[lines.length >> 1]} lines, largest ${lines.at(-1)}`);
});
