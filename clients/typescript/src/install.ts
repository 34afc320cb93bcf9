/** Installs the daemon, only where the caller asks for it: a virtual environment of its own, and pip. @module */

import { spawn } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

import { DaemonNotFoundError } from "./errors.js";
import { USUAL_FOLDERS, installFolder, pythonCommand } from "./discovery.js";
import { codeOf } from "./paths.js";
import { ask, expand, which } from "./programs.js";
import type { Environment } from "./programs.js";

/** What pip is asked for. */
export const DISTRIBUTION = "vlmd[mlx]";

// The daemon's own minimum.
const PYTHON_NAMES = ["python3.14", "python3.13", "python3.12", "python3.11", "python3"];
const MIN_MINOR = 11;
const VERSION = "import sys; print(*sys.version_info[:2])";
const VERSION_TIMEOUT_MS = 10_000;

/**
 * Make a virtual environment in the user's data folder and install the daemon with its engine there. This downloads.
 *
 * @param onLine - gets each line that pip prints.
 * @returns the words before `serve`.
 * @throws {@link DaemonNotFoundError} there is no Python to make it with, or pip failed.
 */
export async function installDaemon(environment: Environment, onLine: (line: string) => void, signal?: AbortSignal): Promise<string[]> {
  const folder = installFolder(environment);
  const python = join(folder, "bin", "python");
  const maker = await findPython(environment);
  await mkdir(dirname(folder), { recursive: true });
  for (const words of [
    [maker, "-m", "venv", folder],
    [python, "-m", "pip", "install", "--disable-pip-version-check", "--upgrade", DISTRIBUTION],
  ]) {
    await run(words, environment, onLine, signal);
  }
  return pythonCommand(python);
}

async function findPython(environment: Environment): Promise<string> {
  const tried: string[] = [];
  for (const name of PYTHON_NAMES) {
    for (const place of [name, ...USUAL_FOLDERS.map((folder) => expand(join(folder, name)))]) {
      const found = await which(place, environment);
      if (found === undefined) continue;
      const version = await ask([found, "-c", VERSION], environment, VERSION_TIMEOUT_MS).catch(() => "");
      const [major = 0, minor = 0] = version.split(" ").map(Number);
      if (major === 3 && minor >= MIN_MINOR) return found;
      tried.push(`\n  ${found}: Python ${version.trim().replace(" ", ".") || "that does not run"}`);
    }
  }
  throw new DaemonNotFoundError(
    `To install vlmd, Python 3.${MIN_MINOR} or later is needed, and there is none. Tried: ` +
      (tried.join("") || `${PYTHON_NAMES.join(", ")} on PATH and in ${USUAL_FOLDERS.join(", ")}`),
  );
}

function run(words: readonly string[], environment: Environment, onLine: (line: string) => void, signal?: AbortSignal): Promise<void> {
  const [program = "", ...args] = words;
  return new Promise((resolve, reject) => {
    const fail = (why: string): void => {
      reject(new DaemonNotFoundError(`Installing vlmd failed: ${words.join(" ")}: ${why}.\n  ${last.join("\n  ")}`));
    };
    const last: string[] = [];
    const child = spawn(program, args, { env: { ...environment }, stdio: ["ignore", "pipe", "pipe"], ...(signal && { signal }) });
    for (const pipe of [child.stdout, child.stderr]) {
      createInterface({ input: pipe }).on("line", (line) => {
        last.push(line);
        if (last.length > 20) last.shift();
        onLine(line);
      });
    }
    child.on("error", (error) => (signal?.aborted === true ? reject(signal.reason as Error) : fail(codeOf(error))));
    child.on("close", (status, ended) => (status === 0 ? resolve() : fail(ended === null ? `status ${status}` : ended)));
  });
}
