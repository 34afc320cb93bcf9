/** What a test stands on: a short folder, a clean environment, commands of daemons, and the proof that nothing is left. */

import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { after, afterEach, before, beforeEach } from "node:test";
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { deflateSync } from "node:zlib";

import { splitWords } from "../../src/programs.js";
import { isGone, until } from "./waiting.js";

/** The folder of the package. */
export const PACKAGE = resolve(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");

/** The folder of the repository. */
export const REPOSITORY = resolve(PACKAGE, "..", "..");

/** Of the real daemon: `VLMD_COMMAND`, or the repository's own environment. */
export const COMMAND: readonly string[] = splitWords(
  process.env["VLMD_COMMAND"] ?? `${join(REPOSITORY, ".venv", "bin", "python")} -P -m vlmd`,
);

/** Of a daemon that does wrong what it is told to; see `tests/support/fake_daemon.py`. */
export const FAKE_COMMAND: readonly string[] = [COMMAND[0] ?? "python3", join(REPOSITORY, "tests", "support", "fake_daemon.py")];

/** Why tests with the real daemon cannot run here, false if they can. */
export const NO_DAEMON: string | false =
  process.env["CI"] !== undefined || existsSync(COMMAND[0] ?? "") ? false : "no daemon: run scripts/setup, or set VLMD_COMMAND";

// What a test sets, or its caller, must not reach another one.
for (const name of Object.keys(process.env)) if (/^(VLMD|ESCRIBANO)_/.test(name)) delete process.env[name];

/** A folder for each test whose sockets have short paths; `folder()` within a test. */
export function useFolder(): () => string {
  let folder = "";
  beforeEach(() => {
    folder = mkdtempSync("/tmp/vts-");
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));
  return () => folder;
}

/** After each test, nothing of it is left that would keep the process alive, and no descriptor is open. */
export function leaveNothing(): void {
  let resources: string[] = [];
  let descriptors = 0;
  before(() => {
    resources = process.getActiveResourcesInfo();
  });
  beforeEach(() => {
    descriptors = countDescriptors();
  });
  afterEach(async () => {
    await until(() => countDescriptors() <= descriptors, "closing every descriptor");
    const left = (): string[] => process.getActiveResourcesInfo().filter((name) => name !== "Timeout" && name !== "FSReqPromise" && name !== "FSReqCallback");
    const base = resources.filter((name) => name !== "Timeout" && name !== "FSReqPromise" && name !== "FSReqCallback");
    await until(() => left().length <= base.length, "ending everything").catch(() => assert.deepEqual(left(), base));
  });
}

function countDescriptors(): number {
  return readdirSync("/dev/fd").length;
}

/** What fake daemons did, and the way to tell them what to do. */
export class Journal {
  readonly #path: string;

  constructor(folder: string) {
    this.#path = join(folder, "journal");
    this.faults({});
  }

  /** Set what the daemons that start from now on do wrong. */
  faults(faults: object): void {
    process.env["FAKE_DAEMON"] = JSON.stringify({ journal: this.#path, ...faults });
  }

  entries(what: string): { pid: number; args: string[]; frames: number[] }[] {
    if (!existsSync(this.#path)) return [];
    const lines = readFileSync(this.#path, "utf8").trim().split("\n");
    return lines.map((line) => JSON.parse(line) as { what: string; pid: number; args: string[]; frames: number[] }).filter((entry) => entry.what === what);
  }

  get pids(): number[] {
    return this.entries("start").map((entry) => entry.pid);
  }

  /** Wait for the end of all, remove the sockets that killed ones left, and begin a new page. */
  async end(): Promise<void> {
    for (const { pid, args } of this.entries("start")) {
      await until(() => isGone(pid), `the end of ${pid}`);
      const socket = args[args.indexOf("--socket") + 1] ?? "";
      for (const path of [socket, `${socket}.lock`]) rmSync(path, { force: true });
    }
    rmSync(this.#path, { force: true });
  }
}

/** A journal for each test; `journal()` within a test. */
export function useJournal(folder: () => string): () => Journal {
  let journal: Journal | undefined;
  beforeEach(() => {
    journal = new Journal(folder());
  });
  afterEach(() => journal?.end());
  after(() => delete process.env["FAKE_DAEMON"]);
  return () => {
    assert.ok(journal);
    return journal;
  };
}

/** Write `count` small pictures of different colours and return their paths. */
export function writePictures(folder: string, count: number): string[] {
  return Array.from({ length: count }, (_, at) => {
    const path = join(folder, `${String(at).padStart(3, "0")}.png`);
    writeFileSync(path, png(64, 64, [(at * 5) % 256, at % 256, 200]));
    return path;
  });
}

/** A PNG of one colour. */
export function png(width: number, height: number, [red, green, blue]: readonly [number, number, number]): Buffer {
  const row = Buffer.concat([Buffer.of(0), Buffer.alloc(width * 3, Buffer.of(red, green, blue))]);
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const pixels = deflateSync(Buffer.concat(Array.from({ length: height }, () => row)));
  return Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    pngChunk("IHDR", header),
    pngChunk("IDAT", pixels),
    pngChunk("IEND", Buffer.alloc(0)),
  ]);
}

function pngChunk(name: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(name, "latin1"), data]);
  const size = Buffer.alloc(4);
  size.writeUInt32BE(data.length);
  const sum = Buffer.alloc(4);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([size, body, sum]);
}

function crc32(data: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** Run a program in a folder; return its output. Throws with its output, where it fails. */
export function runIn(folder: string, program: string, ...args: string[]): string {
  try {
    return execFileSync(program, args, { cwd: folder, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string };
    throw new Error(`${program} ${args.join(" ")} failed:\n${stdout ?? ""}${stderr ?? String(error)}`);
  }
}
