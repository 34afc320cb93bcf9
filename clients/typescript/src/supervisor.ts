/** From nothing to a connection: attach to a daemon, or start one. @module */

import { dirname } from "node:path";

import { Breaker } from "./breaker.js";
import { DaemonProcess } from "./daemon.js";
import { findCommand } from "./discovery.js";
import {
  ConnectError,
  ConnectionLostError,
  CrashLoopError,
  DaemonNotFoundError,
  DeadlineError,
  StartError,
} from "./errors.js";
import type { VlmdError } from "./errors.js";
import { greet } from "./greet.js";
import { installDaemon } from "./install.js";
import type { LogHook } from "./log.js";
import { ensureFolder, newOwnedSocketPath, socketFolder } from "./paths.js";
import type { StartupListener } from "./readiness.js";
import { SHARED_IDLE_TIMEOUT_S, needsEngine } from "./settings.js";
import type { Settings } from "./settings.js";
import type { Link } from "./transport.js";
import { nowMs, sleep } from "./wait.js";

// How long an owned daemon may take to end by itself, and after SIGTERM: its own limit for draining is 10 s, but all
// its work is ours, and was cancelled with the connection.
const DRAIN_MS = 5_000;
const TERM_MS = 5_000;

// Between two looks at a shared socket whose daemon is just starting or just ending.
const RETRY_MS = 50;

/** Makes connections, one after the other; the caller sees to it that `connect` does not run twice at once. */
export class Supervisor {
  /** The daemon that this client started last. */
  process: DaemonProcess | undefined;
  readonly #settings: Settings;
  readonly #log: LogHook;
  readonly #tell: StartupListener;
  /** Aborted, with the error to throw, when the client is closed. */
  readonly #closing: AbortSignal;
  readonly #breaker = new Breaker();
  #command: string[] | undefined;
  #socket: string | undefined;
  #greeted = false;

  constructor(settings: Settings, log: LogHook, tell: StartupListener, closing: AbortSignal) {
    this.#settings = settings;
    this.#log = log;
    this.#tell = tell;
    this.#closing = closing;
  }

  /**
   * Return a connection that has said `hello`.
   *
   * @throws {@link CrashLoopError} the daemon crashed too often.
   * @throws {@link DaemonNotFoundError} no command starts one.
   * @throws {@link StartError} it ended before it answered.
   * @throws {@link ConnectError} nobody answers, and none is to be started.
   * @throws {@link UnsafeSocketError} the socket is not ours alone.
   * @throws {@link DeadlineError} it does not answer in time.
   * @throws {@link ProtocolError} what answers speaks another protocol.
   */
  async connect(): Promise<Link> {
    if (this.#breaker.isLoop(nowMs())) {
      throw new CrashLoopError(`The daemon crashed too often to be started once more.${this.process?.tail() ?? ""}`);
    }
    this.#tell({ phase: "finding" });
    const { socket, ownership } = this.#settings;
    if (socket === undefined) return this.#connectOwned();
    return ownership === "attached" ? this.#greet(socket) : this.#connectShared(socket);
  }

  /** Count a connection that was lost. */
  noteCrash(): void {
    this.#breaker.note(nowMs());
  }

  /** Return how long to wait before the next `connect`. */
  delayMs(): number {
    return this.#breaker.delayMs(nowMs());
  }

  /** Return why a connection was lost, with what the daemon's process tells about it. */
  async explain(error: VlmdError): Promise<VlmdError> {
    const process = this.process;
    if (process === undefined || process.startup.running || !(error instanceof ConnectionLostError)) return error;
    await process.lastWords();
    if (process.startup.fatal !== undefined) return withTail(process.startup.fatal, process);
    const message = `${error.message} The daemon (pid ${process.pid}) ${process.exitStatus}.${process.tail()}`;
    return new ConnectionLostError(message, { cause: error });
  }

  /** End what this client started and owns. */
  async stop(): Promise<void> {
    await this.process?.stop(DRAIN_MS, TERM_MS);
  }

  async #connectOwned(): Promise<Link> {
    if (this.process?.alive === true && this.#socket !== undefined) {
      // The connection went, the daemon did not: perhaps it is about to.
      try {
        return await this.#greet(this.#socket);
      } catch (error) {
        if (!isGone(error)) throw error;
        await this.stop();
      }
    }
    const path = (this.#socket = newOwnedSocketPath());
    await ensureFolder(dirname(path));
    const process = await this.#spawn(path, true);
    try {
      await this.#bound(process);
      return await this.#greet(path);
    } catch (error) {
      if (!(error instanceof ConnectionLostError)) throw error;
      this.noteCrash();
      throw await this.explain(error);
    }
  }

  async #connectShared(path: string): Promise<Link> {
    const untilMs = nowMs() + this.#settings.timeouts.startMs;
    for (;;) {
      try {
        return await this.#greet(path);
      } catch (error) {
        // Nobody there, or its idle exit came between our connection and its answer.
        if (!isGone(error)) throw error;
        if (nowMs() >= untilMs) throw new ConnectError(`No daemon stays at ${path}: ${error.message}`, { cause: error });
      }
      if (dirname(path) === socketFolder()) await ensureFolder(dirname(path));
      const process = await this.#spawn(path, false);
      await this.#bound(process);
      try {
        return await this.#greet(path);
      } catch (error) {
        if (!isGone(error)) throw error;
        if (!process.startup.running) {
          this.noteCrash();
          throw await this.explain(error);
        }
        // Else the winner of the election has just gone, and the next look finds another.
      }
      await sleep(RETRY_MS, this.#closing);
    }
  }

  async #spawn(path: string, owned: boolean): Promise<DaemonProcess> {
    const { model, textModel } = this.#settings;
    const base = (this.#command ??= await this.#findCommand());
    this.#closing.throwIfAborted();
    await this.stop();
    const command = [...base, "serve", "--socket", path];
    if (model !== undefined) command.push("--model", model);
    if (textModel !== undefined) command.push("--text-model", textModel);
    if (!owned) command.push("--idle-timeout", String(SHARED_IDLE_TIMEOUT_S));
    this.#greeted = false;
    const process = await DaemonProcess.spawn(command, {
      owned,
      log: this.#log,
      // Once connected, the connection tells it.
      onLoading: (progress) => void (this.#greeted || this.#tell({ phase: "loading", ...progress })),
    });
    this.process = process;
    this.#log(`Started daemon ${process.pid} at ${path}`);
    this.#tell({ phase: "starting", pid: process.pid });
    return process;
  }

  async #findCommand(): Promise<string[]> {
    const { command, python, model, resourcesPath, install } = this.#settings;
    try {
      return await findCommand({ command, python, resourcesPath, needsEngine: needsEngine(model), signal: this.#closing });
    } catch (error) {
      if (!install || command !== undefined || python !== undefined || !(error instanceof DaemonNotFoundError)) throw error;
      this.#log(error.message);
      const onLine = (line: string): void => {
        this.#log(line);
        this.#tell({ phase: "installing", line });
      };
      return installDaemon(process.env, onLine, this.#closing);
    }
  }

  /** Wait until the daemon's socket answers, or another daemon holds it. */
  async #bound(process: DaemonProcess): Promise<void> {
    const { startup } = process;
    const { startMs } = this.#settings.timeouts;
    let lines = -1;
    let untilMs = 0;
    while (!startup.bound && !startup.running) {
      if (startup.fatal !== undefined) throw withTail(startup.fatal, process);
      if (startup.over) {
        await process.lastWords();
        this.noteCrash();
        throw new StartError(`The daemon ${process.exitStatus} before it was ready.${process.tail()}`);
      }
      if (startup.lines > lines) {
        lines = startup.lines;
        untilMs = nowMs() + startMs;
      } else if (nowMs() >= untilMs) {
        await process.stop(0, TERM_MS);
        const message = `The daemon was not ready, nor made progress, within ${startMs / 1000} s.${process.tail()}`;
        throw new DeadlineError(message, "start");
      }
      await process.changed.wait(untilMs, this.#closing);
    }
  }

  async #greet(path: string): Promise<Link> {
    const link = await greet(path, this.#settings.timeouts.connectMs, this.#closing);
    this.#greeted = true;
    return link;
  }
}

function isGone(error: unknown): error is ConnectError | ConnectionLostError {
  return error instanceof ConnectError || error instanceof ConnectionLostError;
}

function withTail(error: StartError, process: DaemonProcess): StartError {
  return new StartError(`${error.message}${process.tail()}`, error.code, { cause: error });
}
