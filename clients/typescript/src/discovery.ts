/**
 * Finds the command that starts a daemon.
 *
 * In this order: what the caller names (`command`, `python`), `VLMD_COMMAND`, `VLMD_PYTHON` and
 * `ESCRIBANO_PYTHON_PATH`: these are named, so nothing else is tried. Then what an app brings along in its
 * `process.resourcesPath`, what `install` made, virtual environments, the `vlmd` on PATH and in the usual folders (an
 * app started from the Finder has a bare PATH): the first in which the daemon and its engine are installed.
 *
 * @module
 */

import { open } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, join } from "node:path";

import { DaemonNotFoundError } from "./errors.js";
import { ask, expand, splitWords, which, whyNoProgram } from "./programs.js";
import type { Environment } from "./programs.js";

/** Where installers put commands that a desktop app's PATH does not have. */
export const USUAL_FOLDERS: readonly string[] = ["~/.local/bin", "/opt/homebrew/bin", "/usr/local/bin"];

// The distribution's packages and the engine's, which only its extra brings.
const DAEMON_MODULES = ["vlmd", "vlmd_bridge"];
const ENGINE_MODULE = "mlx_vlm";

// Imports nothing: `find_spec` of a top-level name only looks.
const PROBE = `import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None), sep=',')`;

// An interpreter on a network volume may be slow; one that hangs must not hang us.
const PROBE_TIMEOUT_MS = 10_000;

// A script's interpreter stands in its first line, or in its second behind `#!/bin/sh` where the path is long.
const SHEBANG_BYTES = 1024;

/** Where to look, and for what. */
export interface Search {
  readonly command?: string | readonly string[] | undefined;
  readonly python?: string | undefined;
  /** Whether the engine's packages must be there; the deterministic fake needs none. */
  readonly needsEngine?: boolean;
  readonly environment?: Environment;
  /** Of the app's bundle. */
  readonly resourcesPath?: string | undefined;
  readonly usualFolders?: readonly string[];
  readonly probeTimeoutMs?: number;
  /** Ends the search with its reason. */
  readonly signal?: AbortSignal;
}

/**
 * Return the words before `serve` of the command that starts a daemon.
 *
 * @throws {@link DaemonNotFoundError} there is none; the message names every place tried and why it would not do.
 */
export async function findCommand(search: Search = {}): Promise<string[]> {
  const environment = search.environment ?? process.env;
  if (search.command !== undefined) {
    const words = typeof search.command === "string" ? splitWords(search.command) : [...search.command];
    return namedCommand(words, "command", environment);
  }
  if (search.python !== undefined) return namedPython(search.python, "python");
  const command = environment["VLMD_COMMAND"];
  if (command) return namedCommand(splitWords(command), "VLMD_COMMAND", environment);
  for (const name of ["VLMD_PYTHON", "ESCRIBANO_PYTHON_PATH"]) {
    const python = environment[name];
    if (python) return namedPython(python, name);
  }
  const tried = new Set<string>();
  for await (const { place, words } of candidates(search, environment)) {
    const why = await whyNot(words, search, environment);
    search.signal?.throwIfAborted();
    if (why === undefined) return words;
    tried.add(`\n  ${place}: ${why}`);
  }
  throw new DaemonNotFoundError(
    "No vlmd daemon that could be started was found. Install one with: pip install 'vlmd[mlx]', or name its " +
      `interpreter with VLMD_PYTHON. Tried:${[...tried].join("")}`,
  );
}

/** Return the words that run the daemon with an interpreter. `-P`: not to import what stands in the working folder. */
export function pythonCommand(python: string): string[] {
  return [python, "-P", "-m", "vlmd"];
}

/** Return the folder of the virtual environment that `install` makes. */
export function installFolder(environment: Environment): string {
  const home = environment["HOME"] ?? homedir();
  if (process.platform === "darwin") return join(home, "Library", "Application Support", "vlmd", "venv");
  return join(environment["XDG_DATA_HOME"] || join(home, ".local", "share"), "vlmd", "venv");
}

async function namedCommand(words: string[], origin: string, environment: Environment): Promise<string[]> {
  const [program, ...rest] = words;
  if (program === undefined) throw new DaemonNotFoundError(`${origin} names no command.`);
  const found = await which(program, environment);
  if (found === undefined) {
    const why = program.includes("/") ? await whyNoProgram(program) : "not on PATH";
    throw new DaemonNotFoundError(`${origin} names ${program}: ${why ?? "not on PATH"}.`);
  }
  return [found, ...rest];
}

async function namedPython(python: string, origin: string): Promise<string[]> {
  const path = expand(python);
  const why = await whyNoProgram(path);
  if (why !== undefined) throw new DaemonNotFoundError(`${origin} names ${path}: ${why}.`);
  return pythonCommand(path);
}

interface Candidate {
  readonly place: string;
  readonly words: string[];
}

async function* candidates(search: Search, environment: Environment): AsyncGenerator<Candidate, void, undefined> {
  const inPython = (path: string): Candidate => ({ place: path, words: pythonCommand(path) });
  const script = (path: string): Candidate => ({ place: path, words: [path] });
  const home = environment["HOME"] ?? homedir();
  if (search.resourcesPath) {
    yield inPython(join(search.resourcesPath, "vlmd", "bin", "python"));
    yield script(join(search.resourcesPath, "vlmd", "vlmd"));
  }
  yield inPython(join(installFolder(environment), "bin", "python"));
  for (const folder of [environment["VIRTUAL_ENV"], ".venv", join(home, ".venv")]) {
    if (folder) yield inPython(expand(join(folder, "bin", "python")));
  }
  const found = await which("vlmd", environment);
  yield found === undefined ? { place: "vlmd on PATH", words: [] } : script(found);
  for (const folder of search.usualFolders ?? USUAL_FOLDERS) {
    yield script(join(folder.startsWith("~/") ? join(home, folder.slice(2)) : folder, "vlmd"));
  }
}

/** Return why this command would not start a daemon, undefined if it would. */
async function whyNot(words: readonly string[], search: Search, environment: Environment): Promise<string | undefined> {
  const program = words[0];
  if (program === undefined) return "no such command";
  const why = await whyNoProgram(program);
  if (why !== undefined) return why;
  const interpreter = words.length > 1 ? program : await interpreterOf(program);
  if (interpreter === undefined) return undefined; // no Python script: it knows itself what it needs
  const noInterpreter = await whyNoProgram(interpreter);
  if (noInterpreter !== undefined) return `its interpreter ${interpreter}: ${noInterpreter}`;
  const wanted = [...DAEMON_MODULES, ...((search.needsEngine ?? true) ? [ENGINE_MODULE] : [])];
  let missing: string[];
  try {
    const output = await ask([interpreter, "-P", "-c", PROBE, ...wanted], environment, search.probeTimeoutMs ?? PROBE_TIMEOUT_MS, search.signal);
    missing = output.trim().split(",").filter((name) => wanted.includes(name));
  } catch (error) {
    return `asking ${interpreter} what is installed failed: ${error instanceof Error ? error.message : String(error)}`;
  }
  if (missing.some((name) => DAEMON_MODULES.includes(name))) return "vlmd is not installed there";
  return missing.length > 0 ? "vlmd is installed there without an engine: pip install 'vlmd[mlx]'" : undefined;
}

/** Return the Python that a console script runs on, undefined where the script is something else. */
async function interpreterOf(script: string): Promise<string | undefined> {
  let text: string;
  try {
    const file = await open(script);
    try {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(SHEBANG_BYTES), 0, SHEBANG_BYTES, 0);
      text = buffer.toString("utf8", 0, bytesRead);
    } finally {
      await file.close();
    }
  } catch {
    return undefined;
  }
  const [first = "", second = ""] = text.split("\n");
  if (!first.startsWith("#!")) return undefined;
  const path = first.slice(2).trim();
  if (path === "/bin/sh" && second.startsWith("'''exec'")) return splitWords(second.slice("'''exec'".length))[0];
  return basename(path).startsWith("python") ? path : undefined;
}
