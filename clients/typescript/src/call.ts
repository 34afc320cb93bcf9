/** One request that is answered once, and at once. @module */

import { Malformed } from "./codec.js";
import { DeadlineError, ProtocolError } from "./errors.js";
import { Mailbox } from "./mailbox.js";
import type { Shape } from "./shape.js";
import type { Link } from "./transport.js";
import { Wake, nowMs } from "./wait.js";

/** Methods that a daemon answers at once, also while it loads or infers. */
export type SimpleMethod = "ping" | "status" | "cache" | "shutdown";

/**
 * Ask, and return the answer, which has to come within `limitMs`.
 *
 * @throws {@link VlmdError} it does not, or is none; the reason of an aborted `signal`.
 */
export async function call<T>(
  link: Link,
  method: SimpleMethod,
  params: object,
  shape: Shape<T>,
  limitMs: number,
  signal?: AbortSignal,
): Promise<T> {
  const box = new Mailbox(new Wake());
  const requestId = link.post(method, params, box);
  const untilMs = nowMs() + limitMs;
  try {
    for (;;) {
      const event = await box.next(untilMs, signal);
      if (event === undefined) {
        throw new DeadlineError(`The daemon did not answer ${method} within ${limitMs / 1000} s.`, "first_byte");
      }
      if (event.type === "broken" || event.type === "refused") throw event.error;
      if (event.type !== "news") return shape(event.type === "answered" ? event.result : undefined, "result");
    }
  } catch (error) {
    if (!(error instanceof Malformed)) throw error;
    const violation = new ProtocolError(`The daemon's answer to ${method} is of another form: ${error.message}`);
    link.close(violation);
    throw violation;
  } finally {
    link.cancel(requestId);
  }
}
