/** A scripted peer on a Unix socket: obeys the protocol, or breaks it in any way. */

import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { rmSync } from "node:fs";

import { until } from "./waiting.js";

export type Message = Record<string, unknown> & { id?: number; method?: string; params?: Record<string, unknown> };

/** Plays one connection; when it returns, the connection is closed. */
export type Dialogue = (talk: Conversation) => Promise<void> | void;

/** One connection, seen from the server. */
export class Conversation {
  readonly server: FakeServer;
  readonly #socket: Socket;
  readonly #lines: Message[] = [];
  #rest = "";
  #ended = false;
  #resume: (() => void) | undefined;

  constructor(socket: Socket, server: FakeServer) {
    this.server = server;
    this.#socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => {
      const lines = (this.#rest + text).split("\n");
      this.#rest = lines.pop() ?? "";
      for (const line of lines) {
        const message = JSON.parse(line) as Message;
        server.received.push(message);
        this.#lines.push(message);
      }
      this.#resume?.();
    });
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#ended = true;
      this.#resume?.();
    });
  }

  /** The client's lines until it hangs up. */
  async *lines(): AsyncGenerator<Message, void, undefined> {
    for (;;) {
      for (let line; (line = this.#lines.shift()) !== undefined; ) yield line;
      if (this.#ended) return;
      await new Promise<void>((resolve) => (this.#resume = resolve));
    }
  }

  /** The next request, which must be `method`. */
  async expect(method?: string): Promise<Message> {
    for await (const message of this.lines()) {
      if (method !== undefined && message.method !== method) throw new Error(`expected ${method}, got ${message.method}`);
      return message;
    }
    return { id: 0 };
  }

  send(data: string | Uint8Array): void {
    this.#socket.write(data);
  }

  line(message: object): void {
    this.send(`${JSON.stringify(message)}\n`);
  }

  answer(request: Message, result: object): void {
    this.line({ id: request.id, result, done: true });
  }

  refuse(request: Message, code: string, more: object = {}): void {
    this.line({ id: request.id, error: "refused", code, retryable: false, ...more, done: true });
  }

  /** Do nothing until the client hangs up. */
  async stall(): Promise<void> {
    for await (const _ of this.lines()) continue;
  }

  hangUp(): void {
    this.#socket.end();
    this.#socket.destroySoon();
  }
}

/** Listens at `path` and plays dialogues: each connection the next one, the last one again and again. */
export class FakeServer implements AsyncDisposable {
  readonly received: Message[] = [];
  connections = 0;
  readonly #path: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(path: string, dialogues: readonly Dialogue[]) {
    this.#path = path;
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
      const dialogue = dialogues[Math.min(this.connections, dialogues.length - 1)] ?? obedient();
      this.connections += 1;
      const talk = new Conversation(socket, this);
      void Promise.resolve(dialogue(talk)).then(() => talk.hangUp());
    });
  }

  static async start(path: string, ...dialogues: Dialogue[]): Promise<FakeServer> {
    const server = new FakeServer(path, dialogues);
    await new Promise<void>((resolve) => server.#server.listen(path, resolve));
    return server;
  }

  /** The methods asked for so far, `hello` left out. */
  get methods(): (string | undefined)[] {
    return this.received.map((message) => message.method).filter((method) => method !== "hello");
  }

  async waitFor(condition: () => boolean): Promise<void> {
    await until(condition);
  }

  /** Close every connection, as a daemon's end would. */
  drop(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.drop();
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#path, { force: true });
  }
}

export const LIMITS = {
  maxFrameBytes: 32 * 1024 * 1024,
  maxImages: 1_000_000,
  maxBatchSize: 256,
  maxTokens: 131_072,
  maxInFlight: 64,
  maxWaitingPlain: 16,
  maxSchemaBytes: 65_536,
};

/** What a daemon says to `hello`. */
export function helloResult(changes: object = {}): object {
  return {
    protocol: 1,
    version: "0.0.0",
    pid: 1,
    state: "ready",
    capabilities: ["describe_images"],
    limits: LIMITS,
    fingerprint: "fake",
    models: [{ name: "fake", state: "ready" }],
    ...changes,
  };
}

interface WireImage {
  readonly imagePath: string;
  readonly index?: number;
  readonly timestamp?: number;
  readonly id?: number | string;
}

/** The lines that answer a `describe_images`. */
export function* batchLines(request: Message): Generator<Message & { results: { index: number }[] }, void, undefined> {
  const { images, batchSize: size = 4 } = request.params as unknown as { images: WireImage[]; batchSize?: number };
  for (let start = 0, batch = 1; start < images.length; start += size, batch++) {
    const results = images.slice(start, start + size).map(({ imagePath, timestamp = null, ...labels }, at) => ({
      index: start + at,
      ...labels,
      timestamp,
      imagePath,
      description: `shows ${imagePath}`,
      activity: "testing",
      apps: ["node"],
      topics: [],
    }));
    const current = start + results.length;
    const last = current === images.length;
    const ending = last ? { partial: false, done: true } : { partial: true };
    yield { id: request.id ?? 0, batch, results, progress: { current, total: images.length }, ...ending };
  }
}

/** A dialogue that answers `hello` and goes on with `dialogue`. */
export function helloThen(dialogue: Dialogue): Dialogue {
  return async (talk) => {
    talk.answer(await talk.expect("hello"), helloResult());
    await dialogue(talk);
  };
}

/** The dialogue of a daemon that does as it should. `beforeBatch` is awaited before each line of frames. */
export function obedient(options: { beforeBatch?: (line: Message) => Promise<void> | void; hello?: object } = {}): Dialogue {
  return async (talk) => {
    const cancelled = new Set<unknown>();
    const describe = async (request: Message): Promise<void> => {
      for (const line of batchLines(request)) {
        await options.beforeBatch?.(line);
        if (cancelled.has(request.id)) return talk.refuse(request, "cancelled");
        talk.line(line);
      }
    };
    for await (const request of talk.lines()) {
      switch (request.method) {
        case "hello":
          talk.answer(request, options.hello ?? helloResult());
          break;
        case "ping":
          talk.answer(request, { state: "ready", uptimeS: 1.5 });
          break;
        case "describe_images":
          void describe(request);
          break;
        case "cancel":
          cancelled.add(request.params?.["target"]);
          talk.answer(request, { cancelled: true });
          break;
        case "shutdown":
          talk.answer(request, { state: "draining" });
          return;
        default:
          talk.refuse(request, "method_not_found");
      }
    }
  };
}
