/** The files of vectors and their bytes; `protocol/vlmd_protocol/vectors/v1/README.md` describes them. */

import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** The protocol's package, in the repository. */
export const PROTOCOL = resolve(dirname(fileURLToPath(import.meta.url)), "..", "..", "..", "..", "..", "protocol", "vlmd_protocol");

/** How a vector writes bytes. */
export type Bytes = string | { hex: string } | { repeat: Bytes; times: number } | Bytes[];

/** The bytes that a vector describes. */
export function toBytes(value: Bytes): Buffer {
  if (typeof value === "string") return Buffer.from(value);
  if (Array.isArray(value)) return Buffer.concat(value.map(toBytes));
  if ("hex" in value) return Buffer.from(value.hex, "hex");
  const once = toBytes(value.repeat);
  return Buffer.alloc(once.length * value.times, once);
}

/** The lines of a file such as `decode/lines`, a case each. */
export function readVectors(file: string): string[] {
  return readFileSync(join(PROTOCOL, "vectors", "v1", `${file}.jsonl`), "utf8").trim().split("\n");
}
