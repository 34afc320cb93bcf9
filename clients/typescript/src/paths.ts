/** The one private folder, `/tmp/vlmd-<uid>/`, and the checks that make it ours alone. @module */

import { randomBytes } from "node:crypto";
import { chmod, lstat, mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";

import { ConnectError, DaemonNotFoundError, UnsafeSocketError } from "./errors.js";
import { MAX_SOCKET_PATH_BYTES, PROTOCOL_VERSION } from "./protocol.gen.js";

const FOLDER_MODE = 0o700;
const OTHERS = 0o077;

/** Return the effective user id. @throws {@link DaemonNotFoundError} on a platform without Unix users. */
export function userId(): number {
  const uid = process.geteuid?.();
  if (uid === undefined) throw new DaemonNotFoundError(`vlmd runs on macOS and Linux, not on ${process.platform}.`);
  return uid;
}

/** Return the folder of this user's sockets. `/tmp`, not `$TMPDIR`: macOS's is too long for a socket path. */
export function socketFolder(uid: number = userId()): string {
  return `/tmp/vlmd-${uid}`;
}

/** Return the path of the user's shared daemon; it carries the protocol number. */
export function sharedSocketPath(uid: number = userId()): string {
  return join(socketFolder(uid), `shared-${PROTOCOL_VERSION}.sock`);
}

/** Return a path for a daemon that one process owns, not used before. */
export function newOwnedSocketPath(): string {
  return join(socketFolder(), `own-${process.pid}-${randomBytes(4).toString("hex")}.sock`);
}

/** Refuse a path that `bind` would. @throws {@link UnsafeSocketError} it is too long. */
export function checkLength(path: string): void {
  const bytes = Buffer.byteLength(path);
  if (bytes > MAX_SOCKET_PATH_BYTES) {
    throw new UnsafeSocketError(
      `The socket path has ${bytes} bytes; at most ${MAX_SOCKET_PATH_BYTES} work on every platform. ` +
        "Choose a shorter one with `socket` or VLMD_SOCKET.",
    );
  }
}

/**
 * Create `folder` with mode 0700 if it is not there, and check it.
 *
 * @throws {@link UnsafeSocketError} it is no real directory, belongs to another user, or others may enter it.
 */
export async function ensureFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { mode: FOLDER_MODE });
    await chmod(folder, FOLDER_MODE); // the umask may have taken bits that the owner needs
  } catch (error) {
    if (codeOf(error) !== "EEXIST") {
      throw new UnsafeSocketError(`Cannot create the socket folder ${folder}: ${codeOf(error)}.`, { cause: error });
    }
  }
  await checkFolder(folder);
}

/**
 * Check that `folder` is a directory (no symlink), ours, and closed to others.
 *
 * @throws {@link UnsafeSocketError} it is not; the message says what to do.
 * @throws Error - there is none (`ENOENT`).
 */
export async function checkFolder(folder: string): Promise<void> {
  const status = await lstat(folder);
  if (!status.isDirectory()) {
    const kind = status.isSymbolicLink() ? "a symbolic link" : "no directory";
    throw new UnsafeSocketError(`The socket folder ${folder} is ${kind}. Remove it and start again.`);
  }
  if (status.uid !== userId()) {
    throw new UnsafeSocketError(`The socket folder ${folder} belongs to user ${status.uid}, not to you.`);
  }
  if ((status.mode & OTHERS) !== 0) {
    const mode = (status.mode & 0o7777).toString(8).padStart(4, "0");
    throw new UnsafeSocketError(`Others may enter the socket folder ${folder} (mode ${mode}). Run: chmod 700 ${folder}`);
  }
}

/**
 * Check, before the client speaks, that `path` is a socket of our own.
 *
 * @throws {@link UnsafeSocketError} it is not.
 * @throws {@link ConnectError} there is nothing.
 */
export async function checkSocket(path: string): Promise<void> {
  try {
    const folder = dirname(path);
    if (folder === socketFolder()) await checkFolder(folder);
    const status = await lstat(path);
    if (!status.isSocket()) {
      throw new UnsafeSocketError(`${path} is not a socket. Remove it, or choose another path with \`socket\`.`);
    }
    if (status.uid !== userId()) {
      throw new UnsafeSocketError(`The socket ${path} belongs to user ${status.uid}, not to you.`);
    }
  } catch (error) {
    if (error instanceof UnsafeSocketError) throw error;
    const code = codeOf(error);
    const why = code === "ENOENT" ? "there is no socket" : code;
    throw new ConnectError(`Nobody answers at ${path}: ${why}.`, { cause: error });
  }
}

/** Return the `code` of a system error, or the error in words. */
export function codeOf(error: unknown): string {
  if (error instanceof Error && "code" in error && typeof error.code === "string") return error.code;
  return String(error);
}
