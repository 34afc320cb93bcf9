/** Connects and says `hello`. @module */

import { Malformed } from "./codec.js";
import { ConnectionLostError, DeadlineError, ProtocolError } from "./errors.js";
import { Mailbox } from "./mailbox.js";
import { checkSocket } from "./paths.js";
import { PROTOCOL_VERSION } from "./protocol.gen.js";
import type { HelloResult } from "./protocol.gen.js";
import { helloResult } from "./replies.js";
import { Link } from "./transport.js";
import { VERSION } from "./version.js";
import { Wake, nowMs } from "./wait.js";

/**
 * Return a connection to the daemon at `path`, which took it within `limitMs` and answered `hello` within as long.
 *
 * @throws {@link UnsafeSocketError} what is there is not ours; nothing was said to it.
 * @throws {@link ConnectError} nobody answers.
 * @throws {@link ConnectionLostError} it hung up.
 * @throws {@link DeadlineError} it takes too long.
 * @throws {@link ProtocolError} it is no daemon, or speaks another protocol.
 */
export async function greet(path: string, limitMs: number, signal: AbortSignal): Promise<Link> {
  await checkSocket(path);
  const link = await Link.open(path, nowMs() + limitMs, signal);
  // Anew: a host that loads its modules meanwhile, and blocks its event loop, has not had the time itself.
  const untilMs = nowMs() + limitMs;
  try {
    const box = new Mailbox(new Wake());
    link.post("hello", { protocol: PROTOCOL_VERSION, client: { name: "vlmd-typescript", version: VERSION } }, box);
    link.hello = await awaitHello(box, path, untilMs, signal);
    if (link.hello === undefined) {
      throw new DeadlineError(`The daemon at ${path} did not answer hello within ${limitMs / 1000} s.`, "connect");
    }
    return link;
  } catch (error) {
    link.close(new ConnectionLostError("The daemon did not say hello."));
    throw error;
  }
}

async function awaitHello(box: Mailbox, path: string, untilMs: number, signal: AbortSignal): Promise<HelloResult | undefined> {
  for (;;) {
    const event = await box.next(untilMs, signal);
    if (event === undefined) return undefined;
    if (event.type === "broken") throw event.error;
    if (event.type === "refused") {
      if (event.error.code !== "unsupported_protocol") throw event.error;
      throw new ProtocolError(`The daemon at ${path} refused: ${event.error.message}`, { cause: event.error });
    }
    if (event.type !== "news") return checkHello(event.type === "answered" ? event.result : undefined, path);
  }
}

function checkHello(result: unknown, path: string): HelloResult {
  let hello: HelloResult;
  try {
    hello = helloResult(result, "result");
  } catch (error) {
    if (!(error instanceof Malformed)) throw error;
    throw new ProtocolError(`What answers at ${path} is no vlmd daemon: ${error.message}`, { cause: error });
  }
  if (hello.protocol !== PROTOCOL_VERSION) {
    throw new ProtocolError(
      `The daemon at ${path} (${hello.version}) speaks protocol ${hello.protocol}, this client ${PROTOCOL_VERSION}. ` +
        "Stop it with `vlmd stop`, or use another socket.",
    );
  }
  return hello;
}
