/**
 * One `describe` call, sans IO: frames to requests of bounded size, their lines to numbered batches in order.
 *
 * A request carries a *chunk* of frames. What of a chunk is not delivered can be asked for again, on another connection
 * and of another daemon; numbers and progress are the job's own and go on.
 *
 * @module
 */

import { InvalidRequestError, ProtocolError } from "./errors.js";
import type { SourceFrame } from "./images.js";
import { DEFAULT_BATCH_SIZE, MAX_BATCH_SIZE } from "./protocol.gen.js";
import type { DescribeParams } from "./protocol.gen.js";
import { frameOf } from "./results.js";
import type { Batch, Frame } from "./results.js";
import type { Batched } from "./session.js";

// Frames of one request: enough to keep an engine busy while the next is asked for, few enough that an endless
// iterable is read only a little ahead of its reader.
const CHUNK_FRAMES = 256;

// Requests of one job that are under way: the engine does not idle between two chunks.
const MAX_CHUNKS = 2;

// Names of series, of which no two jobs of a connection have the same.
let lastSeries = 0;

/** Frames of one request. What is asked for is a suffix of `frames` after a resumption. */
interface Chunk {
  readonly frames: readonly SourceFrame[];
  readonly ready: Frame[][];
  requestId: number | undefined;
  received: number;
}

/** The options of a job: params whose images are put in chunk by chunk. */
export type JobOptions = Omit<DescribeParams, "images" | "series">;

/** State of one job. */
export class DescribeJob {
  /** Frames of a batch. */
  readonly batchSize: number;
  /** Frames of a request, at most. */
  readonly chunkFrames: number;
  readonly #options: JobOptions;
  readonly #chunks: Chunk[] = [];
  #total: number | undefined;
  #taken = 0;
  #delivered = 0;
  #batches = 0;
  #inputEnded = false;
  #moreKnown = false;
  #series = ++lastSeries;

  /** @throws {@link InvalidRequestError} the batch size is out of bounds. */
  constructor(options: JobOptions, total: number | undefined) {
    this.batchSize = options.batchSize ?? DEFAULT_BATCH_SIZE;
    if (!Number.isInteger(this.batchSize) || this.batchSize < 1 || this.batchSize > MAX_BATCH_SIZE) {
      const message = `batchSize is ${this.batchSize}; it must be a whole number from 1 to ${MAX_BATCH_SIZE}.`;
      throw new InvalidRequestError(message, { code: "invalid_params" });
    }
    this.#options = options;
    this.#total = total;
    // A multiple of the batch size, so that batches do not straddle requests; two batches at least, so that one can be
    // read while the next is inferred.
    this.chunkFrames = this.batchSize * Math.max(2, Math.floor(CHUNK_FRAMES / this.batchSize));
  }

  // --- input --------------------------------------------------------------------------------------------------

  /** Whether to take another chunk from the caller's iterable. */
  get wantsChunk(): boolean {
    if (this.#inputEnded) return false;
    const ahead = this.#taken - this.#delivered;
    return this.#chunks.length === 0 || (this.#chunks.length < MAX_CHUNKS && ahead <= this.chunkFrames / 2);
  }

  /** Whether a batch is held back until it is known if it is the last. */
  get wantsPeek(): boolean {
    return !this.#inputEnded && !this.#moreKnown && this.#isLastKnown();
  }

  /** Take a chunk. */
  add(frames: readonly SourceFrame[]): void {
    if (frames.length === 0) return;
    this.#chunks.push({ frames, ready: [], requestId: undefined, received: 0 });
    this.#taken += frames.length;
    this.#moreKnown = false;
  }

  /** Note that the iterable has more frames than were taken. */
  noteMore(): void {
    this.#moreKnown = true;
  }

  /** Note that the iterable has no more frames. */
  endInput(): void {
    this.#inputEnded = true;
    this.#total = this.#taken;
  }

  // --- requests -----------------------------------------------------------------------------------------------

  /** Whether frames wait to be asked for. */
  get wantsRequest(): boolean {
    return this.#chunks.some((chunk) => this.#isToAsk(chunk));
  }

  /** Ask, by `post`, for whatever is neither delivered nor under way. */
  ask(post: (params: DescribeParams) => number): void {
    for (const chunk of this.#chunks) {
      if (!this.#isToAsk(chunk)) continue;
      const images = chunk.frames.slice(chunk.received).map((frame) => frame.ref);
      const series = this.#isInSeries(chunk) ? { series: this.#series } : {};
      chunk.requestId = post({ ...this.#options, images, ...series });
    }
  }

  /** Ids of the requests under way. */
  get underWay(): readonly number[] {
    return this.#chunks.flatMap((chunk) => chunk.requestId ?? []);
  }

  /**
   * Take a line; return the frames it delivers.
   *
   * @throws {@link ProtocolError} it is not for the frames that come next.
   */
  receive(line: Batched): readonly SourceFrame[] {
    const chunk = this.#chunks.find((each) => each.requestId === line.requestId);
    if (chunk === undefined) return [];
    const expected = chunk.frames.slice(chunk.received, chunk.received + line.results.length);
    const came = line.results.map((result) => result.index);
    const awaited = expected.map((frame) => frame.ref.index);
    if (came.length !== awaited.length || came.some((index, at) => index !== awaited[at])) {
      throw new ProtocolError(`The daemon sent results for frames [${came.join()}] where [${awaited.join()}] come next.`);
    }
    chunk.received += line.results.length;
    if (line.results.length > 0) {
      chunk.ready.push(line.results.map((result, at) => frameOf(result, expected[at]?.spooled ?? false)));
    }
    if (line.done) {
      chunk.requestId = undefined;
      const missing = chunk.frames.length - chunk.received;
      if (missing > 0) throw new ProtocolError(`The daemon ended a job ${missing} frames early.`);
    }
    return expected;
  }

  /** Forget one request or, when the connection is lost, all of them: what they did not deliver is asked for again. */
  unask(requestId?: number): void {
    this.#series = ++lastSeries; // what the daemon knows may be of frames that come after those asked for again
    for (const chunk of this.#chunks) {
      if (requestId === undefined || chunk.requestId === requestId) chunk.requestId = undefined;
    }
  }

  // --- output -------------------------------------------------------------------------------------------------

  /** Return the next batch, if it is there and, unless `force`, it is known whether it is the last. */
  take(force = false): Batch | undefined {
    const chunk = this.#chunks[0];
    if (chunk === undefined || (this.wantsPeek && !force)) return undefined;
    const done = this.#inputEnded && this.#isLastKnown();
    const results = chunk.ready.shift();
    if (results === undefined) return undefined;
    if (isComplete(chunk) && chunk.ready.length === 0) this.#chunks.shift();
    this.#batches += 1;
    this.#delivered += results.length;
    return { batch: this.#batches, results, progress: { current: this.#delivered, total: this.#total }, done };
  }

  /** Whether everything was delivered. */
  get finished(): boolean {
    return this.#inputEnded && this.#chunks.length === 0;
  }

  /** Whether to ask for a chunk now. One of a slow source, which fills no request, is compared with the one before. */
  #isToAsk(chunk: Chunk): boolean {
    const follows = Boolean(this.#options.dedupe) && chunk.frames.length < this.chunkFrames;
    return isUnasked(chunk) && !(follows && this.underWay.length > 0);
  }

  /** Whether the daemon is to compare a chunk's frames with those of others: there are some, and it may. */
  #isInSeries(chunk: Chunk): boolean {
    const alone = this.#inputEnded && this.#taken === chunk.frames.length;
    return !alone && this.#options.mode !== "interleaved" && this.#options.dedupe !== false;
  }

  /** Whether the next batch is there, and the last of all frames taken so far. */
  #isLastKnown(): boolean {
    const chunk = this.#chunks[0];
    return this.#chunks.length === 1 && chunk !== undefined && isComplete(chunk) && chunk.ready.length === 1;
  }
}

function isComplete(chunk: Chunk): boolean {
  return chunk.received === chunk.frames.length;
}

function isUnasked(chunk: Chunk): boolean {
  return chunk.requestId === undefined && !isComplete(chunk);
}
