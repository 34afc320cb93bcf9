/**
 * Errors, drawn first.
 *
 * ```
 * VlmdError
 * ├── RequestError                the daemon refused a request or ended it; `code` says why
 * │   ├── InvalidRequestError     the request itself is wrong
 * │   ├── ModelError              the model cannot be loaded or is not there
 * │   ├── EngineUnavailableError  the engine crashed too often and is not restarted for now
 * │   ├── BusyError               queues are full; `retryAfterMs` says when to try again
 * │   ├── CancelledError          the request was cancelled on the daemon
 * │   ├── ShuttingDownError       the daemon drains
 * │   └── InternalError           a defect of the daemon
 * ├── DaemonError                 no usable daemon
 * │   ├── DaemonNotFoundError     no command starts one; every place tried is named
 * │   ├── StartError              it started and failed before it was ready
 * │   ├── ConnectError            nobody answers at the socket
 * │   ├── ConnectionLostError     it went away while a request was under way
 * │   ├── CrashLoopError          it crashes again and again; the last log lines are in the message
 * │   └── UnsafeSocketError       the socket or its folder is not ours alone
 * ├── DeadlineError               a deadline passed; `phase` says which
 * ├── ProtocolError               the peer sent what the protocol does not allow
 * └── ClosedError                 the client was closed
 * ```
 *
 * An aborted `AbortSignal` rejects with its own `reason`, as `fetch` does. Which code becomes which class is generated
 * from `protocol/vlmd_protocol/errors.py`.
 *
 * @module
 */

import { FRAME_CODES, MAX_ECHO_CHARS, REQUEST_CODES } from "./protocol.gen.js";

/** Base of all errors of vlmd. */
export class VlmdError extends Error {
  /** Stable and short, for programs. */
  readonly code: string;

  constructor(message: string, code = "unknown", options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** Details of an error line. */
export interface RequestErrorDetails {
  readonly code: string;
  readonly retryable?: boolean;
  readonly data?: Readonly<Record<string, unknown>>;
}

/** A request ended with an error line. A newer daemon may send a `code` that this client does not know. */
export class RequestError extends VlmdError {
  /** Whether the same request may succeed later, unchanged. */
  readonly retryable: boolean;
  /** Details as the daemon sent them. */
  readonly data: Readonly<Record<string, unknown>>;

  constructor(message: string, details: RequestErrorDetails) {
    super(message, details.code);
    this.retryable = details.retryable ?? false;
    this.data = details.data ?? {};
  }

  /** Milliseconds after which the daemon suggests to try again, where it does. */
  get retryAfterMs(): number | undefined {
    const after = this.data["retryAfterMs"];
    return typeof after === "number" ? after : undefined;
  }
}

/** The request itself is wrong; asking again changes nothing. */
export class InvalidRequestError extends RequestError {}

/** The model cannot be loaded or is not there. */
export class ModelError extends RequestError {}

/** The engine crashed too often and is not restarted for now. */
export class EngineUnavailableError extends RequestError {}

/** Queues are full. */
export class BusyError extends RequestError {}

/** The request was cancelled. */
export class CancelledError extends RequestError {}

/** The daemon drains and takes no new work. */
export class ShuttingDownError extends RequestError {}

/** A defect of the daemon; its log has the traceback. */
export class InternalError extends RequestError {}

/** There is no usable daemon. */
export class DaemonError extends VlmdError {
  constructor(message: string, code = "daemon_unavailable", options?: ErrorOptions) {
    super(message, code, options);
  }
}

/** No command that starts a daemon was found; the message names every place tried. */
export class DaemonNotFoundError extends DaemonError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, "daemon_not_found", options);
  }
}

/** The code of a {@link StartError} where the daemon gave no reason of its own. */
export const START_FAILED = "start_failed";

/** The daemon started and failed before it was ready. Its `code` is that of the daemon's own reason, if it gave one. */
export class StartError extends DaemonError {
  constructor(message: string, code: string = START_FAILED, options?: ErrorOptions) {
    super(message, code, options);
  }
}

/** Nobody answers at the socket. */
export class ConnectError extends DaemonError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, "connect_failed", options);
  }
}

/** The daemon went away while a request was under way. */
export class ConnectionLostError extends DaemonError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, "connection_lost", options);
  }
}

/** The daemon crashes again and again. */
export class CrashLoopError extends DaemonError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, "crash_loop", options);
  }
}

/** The socket or its folder belongs to someone else, is open to others, or is not what it should be. */
export class UnsafeSocketError extends DaemonError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, "socket_unsafe", options);
  }
}

/** What a deadline was for. */
export type DeadlinePhase = "connect" | "start" | "first_byte" | "between_batches" | "between_deltas" | "total";

/** A deadline passed. */
export class DeadlineError extends VlmdError {
  /** Which one. */
  readonly phase: DeadlinePhase;

  constructor(message: string, phase: DeadlinePhase) {
    super(message, "deadline_exceeded");
    this.phase = phase;
  }
}

/** The peer sent what the protocol does not allow. */
export class ProtocolError extends VlmdError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, "protocol_violation", options);
  }
}

/** The client was closed. */
export class ClosedError extends VlmdError {
  constructor(message = "The client was closed.") {
    super(message, "client_closed");
  }
}

type RequestErrorClass = new (message: string, details: RequestErrorDetails) => RequestError;
type Entry = (typeof REQUEST_CODES)[keyof typeof REQUEST_CODES] | (typeof FRAME_CODES)[keyof typeof FRAME_CODES];

// Complete by its type: a new name in the generated table does not compile without a class here.
const CLASSES: Readonly<Record<Entry["exception"], RequestErrorClass>> = {
  InvalidRequestError,
  ModelError,
  EngineUnavailableError,
  BusyError,
  CancelledError,
  ShuttingDownError,
  InternalError,
};

// A `generate` may end with the code of a frame.
const CODES: ReadonlyMap<string, Entry> = new Map<string, Entry>([
  ...Object.entries(REQUEST_CODES),
  ...Object.entries(FRAME_CODES),
]);

/** Return the error of an error line. An unknown code yields {@link RequestError} itself. */
export function errorFromCode(message: string, details: RequestErrorDetails): RequestError {
  const entry = CODES.get(details.code);
  return new (entry === undefined ? RequestError : CLASSES[entry.exception])(message, details);
}

/** Return `text` in at most `maxChars` printable characters, the middle left out, for use in a message. */
export function shorten(text: string, maxChars: number = MAX_ECHO_CHARS): string {
  const printable = text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");
  if (printable.length <= maxChars) return printable;
  const head = Math.floor((maxChars * 2) / 3);
  return `${printable.slice(0, head)}…${printable.slice(printable.length - (maxChars - head - 1))}`;
}
