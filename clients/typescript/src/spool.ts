/** Pictures that a caller has in memory, as files in the private folder: the daemon takes paths. @module */

import { randomBytes } from "node:crypto";
import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { ensureFolder, socketFolder } from "./paths.js";

const SPOOL_NAME = /^spool-(\d+)-/;

/** The files of one client. */
export class Spool {
  readonly #folder = join(socketFolder(), `spool-${process.pid}-${randomBytes(4).toString("hex")}`);
  #made: Promise<void> | undefined;
  #files = 0;
  #closed = false;

  /** Write a picture and return the path of its file, which only this user can read. */
  async write(data: Uint8Array): Promise<string> {
    await (this.#made ??= this.#make());
    const path = join(this.#folder, String(this.#files++));
    await writeFile(path, data, { flag: "wx", mode: 0o600 });
    if (this.#closed) await this.close();
    return path;
  }

  /** Remove a file; the daemon has read it. */
  async remove(path: string): Promise<void> {
    await rm(path, { force: true });
  }

  /** Remove all that is left. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#made === undefined) return;
    await this.#made.catch(() => undefined);
    await rm(this.#folder, { recursive: true, force: true });
  }

  async #make(): Promise<void> {
    await ensureFolder(socketFolder());
    await mkdir(this.#folder, { mode: 0o700 });
  }
}

/** Remove what clients left that ended without `close`. Fails for no reason: another one sweeps again. */
export async function sweepSpools(): Promise<void> {
  const folder = socketFolder();
  const names = await readdir(folder).catch(() => []);
  for (const name of names) {
    const pid = Number(SPOOL_NAME.exec(name)?.[1] ?? process.pid);
    if (!isAlive(pid)) await rm(join(folder, name), { recursive: true, force: true }).catch(() => undefined);
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}
