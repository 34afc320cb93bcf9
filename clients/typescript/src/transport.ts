/** One connection to a daemon: the session over a Unix socket, and the mailboxes its events go to. @module */

import { connect } from "node:net";
import type { Socket } from "node:net";

import { ConnectError, ConnectionLostError, DeadlineError } from "./errors.js";
import type { VlmdError } from "./errors.js";
import type { Mailbox } from "./mailbox.js";
import { codeOf } from "./paths.js";
import type { HelloResult, Method, MethodMap } from "./protocol.gen.js";
import { ClientSession } from "./session.js";
import type { News, SessionEvent } from "./session.js";
import { nowMs, sleep } from "./wait.js";

// A daemon whose accept queue is full (EAGAIN on Linux) is asked again after so long.
const QUEUE_FULL_WAIT_MS = 20;

/** A connection. It is read until it is lost. Its socket never keeps the host alive. */
export class Link {
  /** Why it was lost, once it is. */
  lost: VlmdError | undefined;
  /** What the daemon said of itself. */
  hello: HelloResult | undefined;
  /** The daemon announced its end, so that a loss is no crash. */
  draining = false;
  /** Gets what the daemon tells unasked. */
  onNews: (news: News) => void = () => undefined;
  /** Called once, when it is lost. */
  onLost: () => void = () => undefined;
  readonly #socket: Socket;
  readonly #session = new ClientSession();
  readonly #boxes = new Map<number, Mailbox>();

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (data) => this.#receive(data));
    socket.on("end", () => this.#lose(new ConnectionLostError("The daemon closed the connection.")));
    socket.on("close", () => this.#lose(new ConnectionLostError("The daemon closed the connection.")));
    socket.on("error", (error) => this.#lose(new ConnectionLostError(`The daemon closed the connection: ${codeOf(error)}.`)));
  }

  /**
   * Connect and start to read.
   *
   * @throws {@link ConnectError} nobody listens at `path`.
   * @throws {@link DeadlineError} somebody does, but takes no connections.
   */
  static async open(path: string, untilMs: number, signal?: AbortSignal): Promise<Link> {
    for (;;) {
      try {
        return new Link(await openSocket(path));
      } catch (error) {
        if (codeOf(error) !== "EAGAIN") throw new ConnectError(`Nobody answers at ${path}: ${codeOf(error)}.`, { cause: error });
      }
      if (nowMs() >= untilMs) throw new DeadlineError(`The daemon at ${path} takes no connections.`, "connect");
      await sleep(QUEUE_FULL_WAIT_MS, signal);
    }
  }

  /** Send a request whose events go to `box`; return its id. @throws {@link VlmdError} the connection is lost. */
  post<M extends Method>(method: M, params: MethodMap[M]["params"], box: Mailbox): number {
    if (this.lost !== undefined) throw this.lost;
    const { id, line } = this.#session.request(method, params);
    this.#boxes.set(id, box);
    this.#socket.write(line);
    return id;
  }

  /** Leave a request: tell the daemon, and drop what still comes for it. Does nothing where it has ended. */
  cancel(requestId: number): void {
    this.#boxes.delete(requestId);
    const line = this.lost === undefined ? this.#session.cancel(requestId) : undefined;
    if (line !== undefined) this.#socket.write(line);
  }

  /** End the connection; who still waits gets `reason`. */
  close(reason: VlmdError): void {
    this.#lose(reason);
  }

  #lose(reason: VlmdError): void {
    if (this.lost !== undefined) return;
    this.lost = reason;
    for (const box of new Set(this.#boxes.values())) box.put({ type: "broken", error: reason });
    this.#boxes.clear();
    this.#socket.removeAllListeners();
    this.#socket.on("error", () => undefined); // one may still come, of a write under way
    this.#socket.destroy();
    this.onLost();
  }

  #receive(data: Uint8Array): void {
    for (const event of this.#session.receive(data)) {
      if (this.lost !== undefined) return;
      this.#dispatch(event);
    }
  }

  #dispatch(event: SessionEvent): void {
    switch (event.type) {
      case "broken":
        this.#lose(event.error);
        return;
      case "news":
        this.draining ||= event.event === "draining";
        for (const box of new Set(this.#boxes.values())) box.put(event);
        this.onNews(event);
        return;
      default: {
        const more = event.type === "piece" || (event.type === "batched" && !event.done);
        const box = this.#boxes.get(event.requestId);
        if (!more) this.#boxes.delete(event.requestId);
        box?.put(event);
      }
    }
  }
}

function openSocket(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path });
    socket.unref();
    const fail = (error: Error): void => {
      socket.destroy();
      reject(error);
    };
    socket.once("error", fail);
    socket.once("connect", () => {
      socket.off("error", fail);
      resolve(socket);
    });
  });
}
