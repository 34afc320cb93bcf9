/** Runs a `DescribeJob`: takes frames, asks, listens, and goes on after a loss. @module */

import type { ClientCore } from "./core.js";
import type { DescribeOptions } from "./describe-options.js";
import { ProtocolError } from "./errors.js";
import { Source } from "./images.js";
import type { Images } from "./images.js";
import { DescribeJob } from "./job.js";
import { Mailbox } from "./mailbox.js";
import { Patience, isLoss } from "./patience.js";
import type { Batch, JobProgress } from "./results.js";
import { isLoadProgress } from "./session.js";
import type { Batched, SessionEvent } from "./session.js";
import { requestedModel } from "./settings.js";
import { withTimeouts } from "./timeouts.js";
import type { Link } from "./transport.js";
import { Wake, nowMs } from "./wait.js";

// An iterable that needs longer than this to say whether there is another frame, a camera or a screen, does not hold up
// the batch that may be the last.
const PEEK_MS = 1_000;

/** The batches of one call, in order. To leave the loop cancels what is under way on the daemon. */
export class Batches implements AsyncIterableIterator<Batch> {
  readonly #core: ClientCore;
  readonly #source: Source;
  readonly #job: DescribeJob;
  readonly #patience: Patience;
  readonly #resume: boolean;
  readonly #signal: AbortSignal | undefined;
  readonly #onProgress: ((progress: JobProgress) => void) | undefined;
  readonly #wake = new Wake();
  #box = new Mailbox(this.#wake);
  #link: Link | undefined;
  #pulling = false;
  #sourceError: { readonly error: unknown } | undefined;
  #heldSinceMs: number | undefined;
  #over = false;
  #turn: Promise<unknown> = Promise.resolve();

  /** @internal */
  constructor(core: ClientCore, images: Images, options: DescribeOptions) {
    core.checkOpen();
    const { signal, onProgress, timeouts, resume, model, ...params } = options;
    this.#core = core;
    this.#source = new Source(images, core.spool);
    this.#job = new DescribeJob({ ...params, ...requestedModel(core.settings, model, true) }, this.#source.total);
    this.#resume = resume ?? core.settings.resume;
    this.#signal = signal;
    this.#onProgress = onProgress;
    this.#patience = new Patience(core, {
      timeouts: withTimeouts(core.settings.timeouts, timeouts),
      resume: this.#resume,
      between: "between_batches",
      signal,
    });
  }

  /** Return the next batch. @throws {@link VlmdError} the job cannot go on; the reason of an aborted `signal`. */
  next(): Promise<IteratorResult<Batch, undefined>> {
    const turn = this.#turn.then(() => this.#core.during(this.#wake, () => this.#next()));
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  /** Leave: cancel what is under way, and let the iterable of images clean up. A pending `next` ends at once. */
  return(): Promise<IteratorResult<Batch, undefined>> {
    this.#leave();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  async #next(): Promise<IteratorResult<Batch, undefined>> {
    let batch: Batch | undefined;
    try {
      if (!this.#over) {
        this.#signal?.throwIfAborted();
        this.#patience.begin();
        batch = await this.#nextBatch();
        if (batch !== undefined) this.#onProgress?.(batch.progress);
      }
    } catch (error) {
      this.#leave();
      throw error;
    }
    if (batch === undefined || batch.done) this.#leave();
    return batch === undefined ? { done: true, value: undefined } : { done: false, value: batch };
  }

  async #nextBatch(): Promise<Batch | undefined> {
    const job = this.#job;
    while (!this.#over) {
      this.#core.checkOpen();
      if (this.#sourceError !== undefined) throw this.#sourceError.error;
      this.#pull();
      // The next chunk is asked for while batches of this one are still to be read.
      if (this.#link !== undefined && this.#link.lost === undefined) this.#ask(this.#link);
      const batch = job.take(this.#heldSinceMs !== undefined && nowMs() >= this.#heldSinceMs + PEEK_MS);
      if (batch !== undefined) {
        this.#heldSinceMs = undefined;
        return batch;
      }
      if (job.finished) return undefined;
      if (job.wantsPeek) this.#heldSinceMs ??= nowMs();
      await this.#listen();
    }
    return undefined;
  }

  /** Take from the caller's iterable what the job wants of it now, beside everything else. */
  #pull(): void {
    const { wantsChunk, wantsPeek } = this.#job;
    if (this.#pulling || !(wantsChunk || wantsPeek)) return;
    this.#pulling = true;
    const pull = wantsChunk ? this.#takeChunk() : this.#peek();
    void pull
      .catch((error: unknown) => (this.#sourceError = { error }))
      .finally(() => {
        this.#pulling = false;
        this.#wake.set();
      });
  }

  async #takeChunk(): Promise<void> {
    const frames = await this.#source.take(this.#job.chunkFrames, this.#job.batchSize);
    this.#job.add(frames);
    if (this.#source.ended) this.#job.endInput();
  }

  async #peek(): Promise<void> {
    if (await this.#source.atEnd()) this.#job.endInput();
    else this.#job.noteMore();
  }

  /** Wait for one event of this job, on a connection that is made again if it was lost. */
  async #listen(): Promise<void> {
    try {
      const event = this.#box.poll(); // what came before a loss is kept
      if (event !== undefined) return await this.#receive(event);
      const link = this.#link;
      if (link?.lost !== undefined && this.#job.underWay.length > 0) throw await this.#core.explain(link.lost);
      if (this.#job.wantsRequest) await this.#request();
      const awaited = this.#job.underWay.length > 0;
      const { untilMs, phase } = awaited
        ? this.#patience.deadline()
        : { untilMs: this.#patience.totalUntilMs, phase: "total" as const };
      if (nowMs() >= untilMs) this.#patience.fail(phase);
      if (this.#over) return;
      const peekMs = this.#heldSinceMs === undefined ? Infinity : this.#heldSinceMs + PEEK_MS;
      await this.#wake.wait(Math.min(untilMs, peekMs), this.#signal);
    } catch (error) {
      if (!isLoss(error)) throw error;
      this.#job.unask();
      this.#link = undefined;
      this.#box = new Mailbox(this.#wake);
      await this.#patience.waitForRestart(error);
    }
  }

  async #request(): Promise<void> {
    const { totalUntilMs } = this.#patience;
    const link = await this.#core.linkFor(this.#wake, () => this.#over, totalUntilMs, this.#signal);
    if (link === undefined) return;
    if (link !== this.#link) {
      // Whatever an earlier connection was asked for and did not deliver is asked for here.
      this.#job.unask();
      this.#box = new Mailbox(this.#wake);
      this.#link = link;
    }
    this.#ask(link);
  }

  #ask(link: Link): void {
    if (this.#over || !this.#job.wantsRequest) return;
    if (this.#job.underWay.length === 0) this.#patience.noteAsked();
    this.#job.ask((params) => link.post("describe_images", params, this.#box));
  }

  async #receive(event: SessionEvent): Promise<void> {
    switch (event.type) {
      case "news":
        if (isLoadProgress(event)) this.#patience.noteLoading();
        return;
      case "batched":
        this.#takeLine(event);
        this.#patience.notePiece();
        return;
      case "refused":
        this.#job.unask(event.requestId);
        return this.#patience.waitForRoom(event.error);
      case "broken":
        throw await this.#core.explain(event.error);
      default:
        this.#violated(new ProtocolError("The daemon answered describe_images with a line of another method."));
    }
  }

  #takeLine(line: Batched): void {
    try {
      for (const frame of this.#job.receive(line)) this.#source.release(frame);
    } catch (error) {
      if (error instanceof ProtocolError) this.#violated(error);
      throw error;
    }
  }

  /** End the connection: a peer that mixes up frames is not talked to any further. */
  #violated(error: ProtocolError): never {
    this.#link?.close(error);
    throw error;
  }

  #leave(): void {
    if (this.#over) return;
    this.#over = true;
    for (const requestId of this.#job.underWay) this.#link?.cancel(requestId);
    this.#source.close();
    this.#wake.set();
  }
}
