/** A daemon that this client spawned: its pipes, its log lines and its end. @module */

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { closeSync, fstatSync, openSync, readSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";

import { StartError } from "./errors.js";
import type { LogHook } from "./log.js";
import { codeOf } from "./paths.js";
import { Startup } from "./startup.js";
import type { LoadProgress } from "./startup.js";
import { Wake, nowMs } from "./wait.js";

/** Lines of the daemon's log that an error repeats. */
export const TAIL_LINES = 50;

// Its last line on the start-up descriptor and its exit follow the loss of the connection within moments.
const LAST_WORDS_MS = 500;

// A line of the log that is longer than this is cut: a daemon that writes no line feed fills no memory.
const MAX_LOG_LINE_CHARS = 64 * 1024;

// Where `--ready-fd` stands in the array of the child's descriptors.
const READY_FD = 3;

/**
 * One spawned daemon.
 *
 * An owned one holds its standard input open through a pipe that only this process has: at its end, however it comes,
 * the daemon ends. A shared one outlives this process: no pipe to it but the start-up lines, and it is never
 * signalled. Both have a session of their own: Ctrl-C is for the host app, which may well go on.
 */
export class DaemonProcess {
  readonly pid: number;
  readonly owned: boolean;
  readonly startup = new Startup();
  /** Set whenever something changed. */
  readonly changed = new Wake();
  readonly #child: ChildProcess;
  readonly #log: LogHook;
  readonly #tail: string[] = [];
  readonly #ended: Promise<void>;
  #stderrFd: number | undefined;
  #over = false;
  #stderrOver: boolean;

  private constructor(child: ChildProcess, owned: boolean, stderrFd: number | undefined, onLoading: (progress: LoadProgress) => void, log: LogHook) {
    this.#child = child;
    this.pid = child.pid ?? 0;
    this.owned = owned;
    this.#log = log;
    this.#stderrFd = stderrFd;
    this.#stderrOver = child.stderr === null;
    this.#ended = new Promise((resolve) => {
      child.once("exit", () => {
        this.#over = true;
        this.changed.set();
        resolve();
      });
    });
    child.on("error", () => undefined); // a signal that could not be sent: it has ended
    child.unref();
    child.stdin?.on("error", () => undefined);
    for (const pipe of child.stdio) if (pipe !== null && pipe !== undefined && "unref" in pipe) (pipe as { unref(): void }).unref();
    const ready = child.stdio[READY_FD] as Readable;
    this.#followStartup(ready, onLoading);
    if (child.stderr !== null) this.#followLog(child.stderr);
  }

  /**
   * Start one: `command` is all of its command line but `--ready-fd` and `--owned`.
   *
   * @throws {@link StartError} the command cannot be run.
   */
  static async spawn(
    command: readonly string[],
    options: { readonly owned: boolean; readonly log: LogHook; readonly onLoading: (progress: LoadProgress) => void },
  ): Promise<DaemonProcess> {
    const [program = "", ...words] = command;
    // A shared daemon's stderr must stay writable after we are gone: an unlinked file, read only if the start fails.
    const stderrFd = options.owned ? undefined : openUnlinked();
    try {
      const child = spawn(program, [...words, "--ready-fd", String(READY_FD), ...(options.owned ? ["--owned"] : [])], {
        stdio: [options.owned ? "pipe" : "ignore", "ignore", stderrFd ?? "pipe", "pipe"],
        detached: true,
      });
      await new Promise<void>((resolve, reject) => {
        child.once("spawn", resolve);
        child.once("error", reject);
      });
      return new DaemonProcess(child, options.owned, stderrFd, options.onLoading, options.log);
    } catch (error) {
      if (stderrFd !== undefined) closeSync(stderrFd);
      throw new StartError(`Cannot run ${program}: ${codeOf(error)}.`, undefined, { cause: error });
    }
  }

  /** Whether it runs. */
  get alive(): boolean {
    return !this.#over;
  }

  /** How it ended, in words. */
  get exitStatus(): string {
    const { exitCode, signalCode } = this.#child;
    if (!this.#over) return "still runs";
    return signalCode === null ? `ended with status ${exitCode}` : `was ended by ${signalCode}`;
  }

  /** Return its last log lines, indented under a heading, or nothing. */
  tail(): string {
    const lines = this.#stderrFd === undefined ? this.#tail : readTail(this.#stderrFd);
    return lines.length === 0 ? "" : ["\nIts last log lines:", ...lines].join("\n  ");
  }

  /** Give a daemon that just ended, or is about to, a moment for its end and its reason to be seen. */
  async lastWords(): Promise<void> {
    const untilMs = nowMs() + LAST_WORDS_MS;
    while (this.startup.fatal === undefined && !(this.#over && this.startup.over && this.#stderrOver)) {
      if (nowMs() >= untilMs) return;
      await this.changed.wait(untilMs);
    }
  }

  /** End an owned daemon: by the end of its standard input, then SIGTERM, then SIGKILL. Let a shared one go. */
  async stop(drainMs: number, termMs: number): Promise<void> {
    if (this.owned) {
      this.#child.stdin?.destroy();
      // One that was not bound yet has nothing to drain, and may not yet look at its standard input.
      if (!(this.startup.bound && (await this.#waitForEnd(drainMs)))) {
        this.#child.kill("SIGTERM");
        if (!(await this.#waitForEnd(termMs))) {
          this.#child.kill("SIGKILL");
          await this.#ended;
        }
      }
    }
    this.detach();
  }

  /** Let go of its pipes. */
  detach(): void {
    if (this.#stderrFd !== undefined) closeSync(this.#stderrFd);
    this.#stderrFd = undefined;
    for (const pipe of this.#child.stdio) pipe?.destroy();
  }

  async #waitForEnd(ms: number): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const timeout = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, ms).unref();
    });
    await Promise.race([this.#ended, timeout]);
    clearTimeout(timer);
    return this.#over;
  }

  #followStartup(ready: Readable, onLoading: (progress: LoadProgress) => void): void {
    ready.on("data", (data: Uint8Array) => {
      for (const progress of this.startup.receive(data)) {
        const share = progress.fraction === undefined ? "" : ` ${Math.round(progress.fraction * 100)}%`;
        this.#log(`Daemon ${this.pid}: ${progress.stage ?? "loading"}${share}`);
        onLoading(progress);
      }
      this.changed.set();
      if (this.startup.over) ready.destroy();
    });
    ready.on("error", () => undefined);
    ready.on("close", () => {
      this.startup.over = true;
      this.changed.set();
    });
  }

  #followLog(stderr: Readable): void {
    let rest = "";
    stderr.setEncoding("utf8");
    stderr.on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      if (rest.length > MAX_LOG_LINE_CHARS) {
        lines.push(rest);
        rest = "";
      }
      for (const line of lines) this.#noteLog(line);
    });
    stderr.on("error", () => undefined);
    stderr.on("close", () => {
      this.#noteLog(rest);
      rest = "";
      this.#stderrOver = true;
      this.changed.set();
    });
  }

  #noteLog(line: string): void {
    if (line === "") return;
    this.#tail.push(line);
    if (this.#tail.length > TAIL_LINES) this.#tail.shift();
    this.#log(line);
  }
}

function openUnlinked(): number {
  const path = join(tmpdir(), `vlmd-${randomBytes(8).toString("hex")}.log`);
  const fd = openSync(path, "wx+", 0o600);
  unlinkSync(path);
  return fd;
}

function readTail(fd: number): string[] {
  const size = fstatSync(fd).size;
  const bytes = Buffer.alloc(Math.min(size, MAX_LOG_LINE_CHARS));
  readSync(fd, bytes, 0, bytes.length, size - bytes.length);
  return bytes.toString().split("\n").filter((line) => line !== "").slice(-TAIL_LINES);
}
