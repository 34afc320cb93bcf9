/**
 * How often a promise of docs/reliability.md is put to the test, and the figure that comes of it; `tests/faults/figures.py` in TypeScript.
 * Import it before `scene.js`, which clears the environment.
 */

import { appendFileSync } from "node:fs";

const LONG = process.env["VLMD_FAULTS"] === "long";
const FIGURES = process.env["VLMD_FIGURES"];

/** How many rounds this run is to do. */
export function rounds({ push, long }: { push: number; long: number }): number {
  return LONG ? long : push;
}

/** Print the figure of `promise`, and append it to the file that `VLMD_FIGURES` names. */
export function figure(promise: string, values: Record<string, number | string>): void {
  console.log(`# promise ${promise}: ${Object.entries(values).map(([name, value]) => `${name} ${value}`).join(", ")}`);
  if (FIGURES !== undefined) appendFileSync(FIGURES, `${JSON.stringify({ promise, long: LONG, ...values })}\n`);
}
