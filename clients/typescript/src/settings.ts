/** What a client was asked to be, resolved from options and environment. @module */

import { statSync } from "node:fs";
import { resolve as resolvePath } from "node:path";

import type { LogHook } from "./log.js";
import { checkLength, sharedSocketPath, userId } from "./paths.js";
import { expand } from "./programs.js";
import type { Environment } from "./programs.js";
import type { StartupEvent } from "./readiness.js";
import { DEFAULT_TIMEOUTS, withTimeouts } from "./timeouts.js";
import type { Timeouts } from "./timeouts.js";

/** Options of a client. */
export interface ClientOptions {
  /** That a started daemon loads, by name or folder. */
  readonly model?: string;
  /** That it loads beside it, for prompts without pictures. */
  readonly textModel?: string;
  /**
   * True for the user's one shared daemon, started if there is none; false for a private daemon whatever `VLMD_SOCKET`
   * says; by default a private one unless `VLMD_SOCKET` names a socket. A private daemon ends with its client, or with
   * this process however that ends.
   */
  readonly shared?: boolean;
  /** Of a shared daemon elsewhere. */
  readonly socket?: string;
  /** False to attach to a running daemon only. Default: true. */
  readonly start?: boolean;
  /** Words before `serve`, to start a daemon with; a string is split like a shell's. */
  readonly command?: string | readonly string[];
  /** Interpreter to start a daemon with. */
  readonly python?: string;
  /** Where an app's bundle has its files. Default: Electron's `process.resourcesPath`. */
  readonly resourcesPath?: string;
  /**
   * True to install the daemon with pip, into an environment of its own in the user's data folder, where none is found.
   * Default: false, and nothing is ever downloaded.
   */
  readonly install?: boolean;
  /** Deadlines that differ from the defaults. */
  readonly timeouts?: Partial<Timeouts>;
  /** Whether to go on after the daemon was lost. Default: true. */
  readonly resume?: boolean;
  /** Gets every line of the log, prefixed `[VLM] `, a private daemon's own included. */
  readonly log?: LogHook;
  /** Told of every start, a restart after a crash included; see `Client.start`. */
  readonly onStartup?: (event: StartupEvent) => void;
}

/**
 * Whose daemon it is. `owned`: our own, on a socket of our own. `shared`: the one at the socket, started if there is
 * none. `attached`: the one at the socket, never started.
 */
export type Ownership = "owned" | "shared" | "attached";

/** A shared daemon that nobody uses gives its memory back after so long. */
export const SHARED_IDLE_TIMEOUT_S = 300;

// Names that a daemon resolves itself even where there is a folder of that name.
const MODELS_THAT_ARE_NO_FOLDERS = ["demo", "fake"];

/** Resolved options. `socket` is undefined for an owned daemon, whose path is chosen at each start. */
export interface Settings {
  readonly ownership: Ownership;
  readonly socket: string | undefined;
  readonly model: string | undefined;
  readonly textModel: string | undefined;
  readonly command: string | readonly string[] | undefined;
  readonly python: string | undefined;
  readonly resourcesPath: string | undefined;
  readonly install: boolean;
  readonly timeouts: Timeouts;
  readonly resume: boolean;
}

/** Return what a daemon is to call a model: a folder by its absolute path, for the daemon's folder is its own. */
export function modelName(model: string): string;
export function modelName(model: string | undefined): string | undefined;
export function modelName(model: string | undefined): string | undefined {
  if (model === undefined || MODELS_THAT_ARE_NO_FOLDERS.includes(model.split(":", 1)[0] ?? "")) return model;
  const folder = expand(model);
  return statSync(folder, { throwIfNoEntry: false })?.isDirectory() === true ? folder : model;
}

/**
 * Return the model that a request names: the caller's choice, or one that a shared daemon, which may have been started
 * with others, has to have. A private one chooses by the content.
 */
export function requestedModel(settings: Settings, model: string | undefined, hasPictures: boolean): { readonly model?: string } {
  const own = settings.ownership === "owned" ? undefined : ((hasPictures ? undefined : settings.textModel) ?? settings.model);
  const name = modelName(model) ?? own;
  return name === undefined ? {} : { model: name };
}

/** Whether a daemon for `model` needs the engine's packages; the deterministic fake does not. */
export function needsEngine(model: string | undefined): boolean {
  return model?.split(":", 1)[0] !== "fake";
}

/**
 * Return the settings; `VLMD_SOCKET` counts unless `socket` or `shared: false` is given.
 *
 * @throws {@link UnsafeSocketError} the socket's path is too long.
 * @throws TypeError - the options contradict each other.
 */
export function resolveSettings(options: ClientOptions, environment: Environment = process.env): Settings {
  userId();
  if (options.socket !== undefined && options.shared === false) {
    throw new TypeError("A daemon at a given socket is shared: pass `socket` or `shared: false`, not both.");
  }
  const named = options.shared === false ? undefined : environment["VLMD_SOCKET"] || undefined;
  const path = options.socket ?? named;
  const socket = path !== undefined ? resolvePath(path) : options.shared === true ? sharedSocketPath() : undefined;
  if (socket !== undefined) checkLength(socket);
  const start = options.start ?? true;
  if (socket === undefined && !start) {
    throw new TypeError("`start: false` attaches to a running daemon: pass `socket` or `shared: true`.");
  }
  return {
    ownership: socket === undefined ? "owned" : start ? "shared" : "attached",
    socket,
    model: modelName(options.model),
    textModel: modelName(options.textModel),
    command: options.command,
    python: options.python,
    resourcesPath: options.resourcesPath ?? (process as { readonly resourcesPath?: string }).resourcesPath,
    install: options.install ?? false,
    timeouts: withTimeouts(DEFAULT_TIMEOUTS, options.timeouts),
    resume: options.resume ?? true,
  };
}
