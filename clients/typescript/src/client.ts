/** The client. @module */

import { ClientCore } from "./core.js";
import { Batches } from "./describe.js";
import type { DescribeOptions } from "./describe-options.js";
import { Generation, countTokens } from "./generate.js";
import type { CountOptions, GenerateOptions } from "./generate.js";
import type { Images } from "./images.js";
import type { Prompt } from "./prompt.js";
import type { CacheResult, CountResult, HelloResult, PingResult, ShutdownResult, StatusResult } from "./protocol.gen.js";
import type { StartupEvent } from "./readiness.js";
import type { Frame } from "./results.js";
import type { ClientOptions } from "./settings.js";
import { Wake } from "./wait.js";

/** Options of a simple call. */
export interface CallOptions {
  /** Ends the wait with its reason. */
  readonly signal?: AbortSignal;
}

/**
 * A client of vlmd. Its daemon starts with the first call that needs one, and ends with `close`, or with this process
 * however that ends. Idle, it does not keep the process alive.
 *
 * ```ts
 * await using client = new Client({ model: "demo" });
 * for await (const batch of client.describe(["a.png", "b.png"])) {
 *   for (const frame of batch.results) console.log(frame.index, frame.description);
 * }
 * ```
 *
 * Every call may throw {@link DaemonError} where there is no usable daemon, {@link DeadlineError} where it does not
 * answer in time, {@link ProtocolError} where it answers nonsense, and {@link ClosedError}.
 */
export class Client implements AsyncDisposable {
  readonly #core: ClientCore;

  /**
   * @throws {@link UnsafeSocketError} the socket's path is too long.
   * @throws TypeError - the options contradict each other.
   */
  constructor(options: ClientOptions = {}) {
    this.#core = new ClientCore(options);
  }

  /**
   * Start the daemon, if it does not run, and wait until its model is loaded, telling each step: what a splash screen
   * shows. Calls do not need it; they start the daemon themselves.
   */
  async *start(options: CallOptions = {}): AsyncGenerator<StartupEvent, void, undefined> {
    const core = this.#core;
    const left = new AbortController();
    const leave = (): void => left.abort(options.signal?.reason);
    options.signal?.throwIfAborted();
    options.signal?.addEventListener("abort", leave, { once: true });
    const wake = new Wake();
    const events: StartupEvent[] = [];
    const stop = core.startup.listen((event) => {
      events.push(event);
      wake.set();
    });
    let outcome: { readonly error?: unknown } | undefined;
    void core.keepalive
      .during(() => core.ready(left.signal))
      .then(
        () => (outcome = {}),
        (error: unknown) => (outcome = { error }),
      )
      .finally(() => wake.set());
    try {
      let last: StartupEvent["phase"] | undefined;
      for (;;) {
        for (let event; (event = events.shift()) !== undefined; last = event.phase) yield event;
        if (outcome !== undefined) break;
        await wake.wait(Infinity);
      }
      if ("error" in outcome) throw outcome.error;
      if (last !== "ready") yield core.readyEvent(); // it ran already
    } finally {
      options.signal?.removeEventListener("abort", leave);
      leave();
      stop();
    }
  }

  /** Connect if need be, and return what the daemon is. */
  hello(options: CallOptions = {}): Promise<HelloResult> {
    return this.#core.keepalive.during(() => this.#core.hello(options.signal));
  }

  /** Ask whether the daemon is alive; it answers at once, also while it infers or loads. */
  ping(options: CallOptions = {}): Promise<PingResult> {
    return this.#core.keepalive.during(() => this.#core.ping(options.signal));
  }

  /** Return models, queue and memory of the daemon. */
  status(options: CallOptions = {}): Promise<StatusResult> {
    return this.#core.keepalive.during(() => this.#core.status(options.signal));
  }

  /** Return what the daemon's result store holds; `clear` removes everything in it first. */
  cache(action: "info" | "clear" = "info", options: CallOptions = {}): Promise<CacheResult> {
    return this.#core.keepalive.during(() => this.#core.cache({ action }, options.signal));
  }

  /** Tell the daemon, a shared one too, to drain and end. A later call starts another. */
  shutdown(options: CallOptions = {}): Promise<ShutdownResult> {
    return this.#core.keepalive.during(() => this.#core.shutdown(options.signal));
  }

  /**
   * Describe images; their batches come as they are ready, in order.
   *
   * @param images - paths, `file:` URLs, bytes of pictures, or objects with labels; any iterable or async iterable, also
   * an endless one: it is read only a few hundred frames ahead of the batches that are taken.
   * @throws {@link InvalidRequestError} the batch size is out of bounds.
   * @throws TypeError - `images` is a single image.
   *
   * The iterator throws {@link RequestError} where the daemon refuses, and {@link DaemonError} where it was lost and
   * could not be had back; what an iterable of images throws passes through.
   */
  describe(images: Images, options: DescribeOptions = {}): Batches {
    return new Batches(this.#core, images, options);
  }

  /** Describe images and return all their frames, in order; see {@link Client.describe}. */
  async describeAll(images: Images, options: DescribeOptions = {}): Promise<Frame[]> {
    const frames: Frame[] = [];
    for await (const batch of this.describe(images, options)) frames.push(...batch.results);
    return frames;
  }

  /** Generate text for a prompt or a conversation; iterate over its pieces, or await its `text()` or `result()`. */
  generate(prompt: Prompt, options: GenerateOptions = {}): Generation {
    return new Generation(this.#core, prompt, options);
  }

  /** Count how long a prompt is, pictures included, and whether it fits the model. */
  async countTokens(prompt: Prompt, options: CountOptions = {}): Promise<CountResult> {
    return countTokens(this.#core, prompt, options);
  }

  /** End the connection, and a private daemon with it; everyone who still waits gets {@link ClosedError}. */
  close(): Promise<void> {
    return this.#core.close();
  }

  /** The same as {@link Client.close}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
