/** Waiting for conditions, with a deadline. */

import { setTimeout as sleep } from "node:timers/promises";

/** Wait until `condition` holds. */
export async function until(condition: () => boolean | Promise<boolean>, what = "the condition", timeoutMs = 10_000): Promise<void> {
  const untilMs = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() >= untilMs) throw new Error(`${what} did not come true within ${timeoutMs} ms`);
    await sleep(5);
  }
}

/** Whether no process has this id, or it has ended and was only not asked yet. */
export async function isGone(pid: number): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch {
    return true;
  }
  return (await processState(pid)) === "Z";
}

/** The letter in `/proc`, empty where there is none. */
export async function processState(pid: number): Promise<string> {
  const { readFile } = await import("node:fs/promises");
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return stat.slice(stat.lastIndexOf(")") + 2).charAt(0);
}

export { sleep };
