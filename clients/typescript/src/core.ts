/** What a client is: one connection at a time, calls over it, and its end. @module */

import { Malformed } from "./codec.js";
import { ClosedError, ConnectionLostError, DeadlineError, ModelError, ProtocolError, errorFromCode } from "./errors.js";
import type { VlmdError } from "./errors.js";
import { prefixed } from "./log.js";
import type { LogHook } from "./log.js";
import { Mailbox } from "./mailbox.js";
import type { HelloResult, PingResult, ShutdownResult, StatusResult } from "./protocol.gen.js";
import { Readiness, StartupFeed } from "./readiness.js";
import type { StartupEvent } from "./readiness.js";
import { pingResult, shutdownResult, statusResult } from "./replies.js";
import { resolveSettings } from "./settings.js";
import type { ClientOptions, Settings } from "./settings.js";
import type { Shape } from "./shape.js";
import { Spool, sweepSpools } from "./spool.js";
import { Supervisor } from "./supervisor.js";
import type { Link } from "./transport.js";
import { Keepalive, Wake, nowMs, orAborted, sleep } from "./wait.js";

const END_CHECK_MS = 10;

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
    return (this.#closed ??= this.keepalive.during(async () => {
      const reason = new ClosedError();
      this.#closing.abort(reason);
      this.#link?.close(reason);
      await this.#connecting?.catch(() => undefined);
      await this.supervisor.stop();
      await this.spool.close();
    }));
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

  async #call<T>(method: "ping" | "status" | "shutdown", shape: Shape<T>, signal?: AbortSignal): Promise<T> {
    const link = await this.link(signal);
    const box = new Mailbox(new Wake());
    const requestId = link.post(method, {}, box);
    const limitMs = this.settings.timeouts.connectMs;
    const untilMs = nowMs() + limitMs;
    try {
      for (;;) {
        const event = await box.next(untilMs, signal);
        if (event === undefined) {
          throw new DeadlineError(`The daemon did not answer ${method} within ${limitMs / 1000} s.`, "first_byte");
        }
        if (event.type === "broken") throw await this.explain(event.error);
        if (event.type === "refused") throw event.error;
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
}
