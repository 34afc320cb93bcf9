/** Programs of this machine: where they are, whether they run, what they say. @module */

import { execFile } from "node:child_process";
import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, isAbsolute, join, resolve } from "node:path";

import { codeOf } from "./paths.js";

/** Variables of an environment. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** Return why `path` cannot be run, undefined if it can. */
export async function whyNoProgram(path: string): Promise<string | undefined> {
  try {
    if (!(await stat(path)).isFile()) return "not a file";
  } catch {
    return "no such file";
  }
  try {
    await access(path, constants.X_OK);
    return undefined;
  } catch {
    return "not executable";
  }
}

/** Return the file that a shell would run for `name`, undefined if none. */
export async function which(name: string, environment: Environment): Promise<string | undefined> {
  const folders = (environment["PATH"] ?? "").split(delimiter).filter((folder) => folder !== "");
  const candidates = name.includes("/") ? [resolve(name)] : folders.map((folder) => resolve(folder, name));
  for (const candidate of candidates) if ((await whyNoProgram(candidate)) === undefined) return candidate;
  return undefined;
}

/** Return `path`, absolute, with a leading `~` expanded. */
export function expand(path: string): string {
  const expanded = path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path;
  return isAbsolute(expanded) ? expanded : resolve(expanded);
}

/** Run a program; return its standard output. @throws an error that says how it failed. */
export function ask(words: readonly string[], environment: Environment, timeoutMs: number, signal?: AbortSignal): Promise<string> {
  const [program = "", ...args] = words;
  return new Promise((resolve, reject) => {
    const options = { env: { ...environment }, timeout: timeoutMs, killSignal: "SIGKILL" as const, ...(signal && { signal }) };
    const child = execFile(program, args, options, (error, stdout) => {
      if (error === null) resolve(stdout);
      else if (error.killed === true) reject(new Error(`it did not answer within ${timeoutMs / 1000} s`));
      else reject(new Error(typeof error.code === "number" ? `it ended with status ${error.code}` : codeOf(error)));
    });
    child.stdin?.end();
  });
}

/** Split a command line as a shell does: blanks part words, quotes and backslashes keep them together. */
export function splitWords(line: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  let quote = "";
  for (let at = 0; at < line.length; at++) {
    const char = line.charAt(at);
    const next = line.charAt(at + 1);
    if (char === "\\" && quote !== "'" && next !== "" && (quote === "" || next === '"' || next === "\\")) {
      word = (word ?? "") + next;
      at++;
    } else if (quote !== "") {
      if (char === quote) quote = "";
      else word = (word ?? "") + char;
    } else if (char === "'" || char === '"') {
      quote = char;
      word ??= "";
    } else if (/\s/.test(char)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else {
      word = (word ?? "") + char;
    }
  }
  if (quote !== "") throw new SyntaxError(`A ${quote} is not closed in: ${line}`);
  return word === undefined ? words : [...words, word];
}
