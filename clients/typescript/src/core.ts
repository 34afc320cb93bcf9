/** What a client is: one connection at a time, calls over it, and its end. @module */

import { call } from "./call.js";
import type { SimpleMethod } from "./call.js";
import { ClosedError, ConnectionLostError, DeadlineError, ModelError, ProtocolError, errorFromCode } from "./errors.js";
import type { VlmdError } from "./errors.js";
import { prefixed } from "./log.js";
import type { LogHook } from "./log.js";
import type { CacheParams, CacheResult, HelloResult, PingResult, ShutdownResult, StatusResult } from "./protocol.gen.js";
import { Readiness, StartupFeed } from "./readiness.js";
import type { StartupEvent } from "./readiness.js";
import { cacheResult, pingResult, shutdownResult, statusResult } from "./replies.js";
import { resolveSettings } from "./settings.js";
import type { ClientOptions, Settings } from "./settings.js";
import type { Shape } from "./shape.js";
import { Spool, sweepSpools } from "./spool.js";
import { Supervisor } from "./supervisor.js";
import type { Link } from "./transport.js";
import { Keepalive, Wake, nowMs, orAborted, sleep } from "./wait.js";

const END_CHECK_MS = 10;

/** Methods that change nothing, however often they are asked. */
const REPEATABLE: readonly SimpleMethod[] = ["ping", "status"];

/** The procedures of a client. Any number of calls may run at once. */
export class ClientCore {
  readonly settings: Settings;
  readonly log: LogHook;
  readonly supervisor: Supervisor;
  readonly startup = new StartupFeed();
  readonly keepalive = new Keepalive();
  readonly spool = new Spool();
  /** A start that fails after this is a crash to recover from; before, the installation is broken. */
  wasConnected = false;
  /** Set when the state of a model changed, or the connection was lost. */
  readonly #changed = new Wake();
  readonly #closing = new AbortController();
  #readiness: Readiness | undefined;
  #link: Link | undefined;
  #connecting: Promise<Link> | undefined;
  #closed: Promise<void> | undefined;
  #ending = false;
  #swept = false;
  /** Of the calls that are pending. */
  readonly #wakes = new Set<Wake>();

  constructor(options: ClientOptions) {
    this.settings = resolveSettings(options);
    this.log = prefixed(options.log);
    if (options.onStartup !== undefined) this.startup.listen(options.onStartup);
    this.supervisor = new Supervisor(this.settings, this.log, (event) => this.startup.tell(event), this.#closing.signal);
  }

  /** Return what the daemon said when this client connected. */
  async hello(signal?: AbortSignal): Promise<HelloResult> {
    const { hello } = await this.link(signal);
    if (hello === undefined) throw new ProtocolError("The daemon did not say hello.");
    return hello;
  }

  /** Ask whether it is alive. */
  ping(signal?: AbortSignal): Promise<PingResult> {
    return this.#call("ping", pingResult, signal);
  }

  /** Ask how it is. */
  status(signal?: AbortSignal): Promise<StatusResult> {
    return this.#call("status", statusResult, signal);
  }

  /** Look at its result store, or empty it. */
  cache(params: CacheParams, signal?: AbortSignal): Promise<CacheResult> {
    return this.#call("cache", cacheResult, signal, params);
  }

  /** Tell it to drain and end. */
  async shutdown(signal?: AbortSignal): Promise<ShutdownResult> {
    const result = await this.#call("shutdown", shutdownResult, signal);
    this.#ending = true;
    return result;
  }

  /** Connect, and wait until every model is loaded. */
  async ready(signal?: AbortSignal): Promise<void> {
    const { firstByteMs } = this.settings.timeouts;
    const link = await this.link(signal);
    while (this.#readiness?.ready !== true) {
      if (link.lost !== undefined) throw await this.explain(link.lost);
      if (this.#readiness?.failed === true) throw await this.#modelError(signal);
      const untilMs = nowMs() + firstByteMs;
      await this.#changed.wait(untilMs, signal);
      if (nowMs() >= untilMs) {
        const message = `The model was not ready, nor made progress, within ${firstByteMs / 1000} s.`;
        throw new DeadlineError(message, "start");
      }
    }
  }

  /** Return the event that tells that it is ready. */
  readyEvent(): StartupEvent {
    const hello = this.currentLink()?.hello;
    return { phase: "ready", pid: hello?.pid ?? 0, models: hello?.models.map((model) => model.name) ?? [] };
  }

  /**
   * Return the connection, made anew if there is none. An aborted `signal` ends the wait, not the attempt: others may
   * wait for it, too.
   *
   * @throws {@link ClosedError} the client was closed.
   * @throws {@link VlmdError} as `Supervisor.connect` says.
   */
  async link(signal?: AbortSignal): Promise<Link> {
    this.checkOpen();
    signal?.throwIfAborted();
    const link = this.currentLink();
    if (link !== undefined && !this.#ending) return link;
    this.#connecting ??= this.#connect().finally(() => (this.#connecting = undefined));
    return orAborted(this.#connecting, signal);
  }

  /** Return the connection if there is one, without making one. */
  currentLink(): Link | undefined {
    return this.#link?.lost === undefined ? this.#link : undefined;
  }

  /**
   * Do `work`, keeping the host alive; `wake` is set when the client is closed, so that a procedure that waits on it
   * looks again, at `checkOpen`.
   */
  async during<T>(wake: Wake, work: () => Promise<T>): Promise<T> {
    this.#wakes.add(wake);
    try {
      return await this.keepalive.during(work);
    } finally {
      this.#wakes.delete(wake);
    }
  }

  /**
   * The same as `link` for a procedure that runs in `during`: undefined where `isOver` comes to hold meanwhile, or the
   * clock reaches `untilMs`.
   */
  async linkFor(wake: Wake, isOver: () => boolean, untilMs: number, signal?: AbortSignal): Promise<Link | undefined> {
    let outcome: { readonly link: Link } | { readonly error: unknown } | undefined;
    void this.link()
      .then(
        (link) => (outcome = { link }),
        (error: unknown) => (outcome = { error }),
      )
      .finally(() => wake.set());
    while (outcome === undefined) {
      if (isOver() || nowMs() >= untilMs) return undefined;
      await wake.wait(untilMs, signal);
    }
    if ("error" in outcome) throw outcome.error;
    return outcome.link;
  }

  /** Wait. @throws {@link ClosedError}; the reason of `signal`. */
  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    const untilMs = nowMs() + ms;
    const wake = new Wake();
    await this.during(wake, async () => {
      while (nowMs() < untilMs) {
        this.checkOpen();
        await wake.wait(untilMs, signal);
      }
    });
  }

  /** Return the error that a caller sees for a lost connection. */
  async explain(error: VlmdError): Promise<VlmdError> {
    return this.#closed === undefined ? this.supervisor.explain(error) : error;
  }

  /** Refuse use after `close`. @throws {@link ClosedError} */
  checkOpen(): void {
    if (this.#closed !== undefined) throw new ClosedError();
  }

  /** End the connection, and the daemon if it is owned. Everyone who waits gets {@link ClosedError}. */
  close(): Promise<void> {
    if (this.#closed !== undefined) return this.#closed;
    const closed = Promise.resolve().then(() => this.keepalive.during(() => this.#close()));
    return (this.#closed = closed);
  }

  async #close(): Promise<void> {
    const reason = new ClosedError();
    this.#closing.abort(reason);
    this.#link?.close(reason);
    for (const wake of this.#wakes) wake.set();
    await this.#connecting?.catch(() => undefined);
    await this.supervisor.stop();
    await this.spool.close();
  }

  async #connect(): Promise<Link> {
    if (!this.#swept) {
      this.#swept = true;
      await sweepSpools();
    }
    await this.#awaitEnd();
    const old = this.#link;
    if (old !== undefined && old.lost === undefined) return old;
    if (old?.lost instanceof ConnectionLostError && !this.#ending && !old.draining) this.supervisor.noteCrash();
    this.#link = undefined;
    const link = await this.supervisor.connect();
    if (this.#closed !== undefined || link.hello === undefined) {
      link.close(new ClosedError());
      throw new ClosedError();
    }
    this.#link = link;
    this.#ending = false;
    this.wasConnected = true;
    this.#follow(link, link.hello);
    return link;
  }

  #follow(link: Link, hello: HelloResult): void {
    const readiness = (this.#readiness = new Readiness(hello, (event) => this.startup.tell(event)));
    link.onNews = (news) => {
      readiness.note(news);
      this.#changed.set();
    };
    link.onLost = () => this.#changed.set();
  }

  /** After `shutdown`, wait for the old daemon's end: a call that follows is for the next one. */
  async #awaitEnd(): Promise<void> {
    const untilMs = nowMs() + this.settings.timeouts.connectMs;
    // At the deadline it still drains; it says itself what it no longer does.
    while (this.#ending && this.currentLink() !== undefined && nowMs() < untilMs) {
      await sleep(END_CHECK_MS, this.#closing.signal);
    }
  }

  async #modelError(signal: AbortSignal | undefined): Promise<VlmdError> {
    const failed = (await this.status(signal)).models.find((model) => model.error !== undefined);
    if (failed === undefined) return new ModelError("The model could not be loaded.", { code: "model_load_failed" });
    return errorFromCode(failed.error ?? "", { code: failed.code ?? "model_load_failed" });
  }

  /** Ask, and once more where an older connection turns out to be dead, as after a night; only what changes nothing. */
  async #call<T>(method: SimpleMethod, shape: Shape<T>, signal?: AbortSignal, params: object = {}): Promise<T> {
    const again = REPEATABLE.includes(method) && this.currentLink() !== undefined;
    const link = await this.link(signal);
    try {
      return await call(link, method, params, shape, this.settings.timeouts.connectMs, signal);
    } catch (error) {
      if (again && error instanceof ConnectionLostError) return this.#call(method, shape, signal, params);
      throw error === link.lost && error instanceof ConnectionLostError ? await this.explain(error) : error;
    }
  }
}
