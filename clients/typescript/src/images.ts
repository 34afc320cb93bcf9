/** What a caller may pass as images, and how they are taken from an iterable. @module */

import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

import type { Id, ImageRef } from "./protocol.gen.js";
import type { Spool } from "./spool.js";
import { nowMs } from "./wait.js";

/** What labels a frame. */
export interface ImageLabels {
  /** Seconds into the recording, for the prompt and the result. */
  readonly timestamp?: number;
  /** The caller's own number of the frame, echoed; by default its position. */
  readonly index?: number;
  /** The caller's own name of the frame, echoed. */
  readonly id?: Id;
}

/** A picture in a file. A relative path is resolved against the folder the caller is in. */
export interface FileImage extends ImageLabels {
  readonly path: string | URL;
}

/** A picture in memory: the bytes of a PNG, JPEG or another format, not pixels. */
export interface MemoryImage extends ImageLabels {
  readonly data: Uint8Array;
}

/** One frame to describe. */
export type Image = FileImage | MemoryImage;

/** A path, the bytes of a picture, or either with labels. */
export type ImageLike = string | URL | Uint8Array | Image;

/** Any number of images, also without end. */
export type Images = Iterable<ImageLike> | AsyncIterable<ImageLike>;

/** A frame as the daemon is asked for it. */
export interface SourceFrame {
  readonly ref: ImageRef;
  /** Whether the file is ours, and to be removed. */
  readonly spooled: boolean;
}

// A request's frames are taken no longer than this: of a slow source it gets fewer.
const PULL_BUDGET_MS = 250;

// Pictures in memory that one request may put on the disk: frames of a 4K screen are some 10 MB each.
const PULL_BUDGET_BYTES = 64 * 1024 * 1024;

/** Takes frames from the caller's iterable, no earlier than asked. */
export class Source {
  /** How many frames there are, where that is known beforehand. */
  readonly total: number | undefined;
  /** No further frame comes. */
  ended = false;
  readonly #iterator: Iterator<ImageLike> | AsyncIterator<ImageLike>;
  readonly #spool: Spool;
  readonly #folder = process.cwd();
  readonly #spooled = new Set<string>();
  #peeked: SourceFrame | undefined;
  #taken = 0;
  #bytes = 0;

  /** @throws TypeError - `images` is a single image. */
  constructor(images: Images, spool: Spool) {
    if (typeof images === "string" || images instanceof URL || images instanceof Uint8Array) {
      throw new TypeError("`images` is one image; pass a list.");
    }
    if (Symbol.asyncIterator in images) this.#iterator = images[Symbol.asyncIterator]();
    else if (Symbol.iterator in images) this.#iterator = images[Symbol.iterator]();
    else throw new TypeError("`images` is neither a list nor an iterable; of one image pass a list.");
    this.total = Array.isArray(images) ? images.length : images instanceof Set ? images.size : undefined;
    this.#spool = spool;
  }

  /** Return up to `limit` frames: fewer at the end, and of a slow or large source, then in a multiple of `multiple`. */
  async take(limit: number, multiple: number): Promise<SourceFrame[]> {
    const frames: SourceFrame[] = [];
    const untilMs = nowMs() + PULL_BUDGET_MS;
    this.#bytes = 0;
    while (frames.length < limit) {
      const frame = await this.#next();
      if (frame === undefined) break;
      frames.push(frame);
      if (frames.length % multiple === 0 && (nowMs() > untilMs || this.#bytes > PULL_BUDGET_BYTES)) break;
    }
    return frames;
  }

  /** Whether there is no further frame; this asks the iterable for one. */
  async atEnd(): Promise<boolean> {
    this.#peeked ??= await this.#next();
    return this.#peeked === undefined;
  }

  /** A frame was delivered: its file is needed no more. */
  release(frame: SourceFrame): void {
    if (frame.spooled && this.#spooled.delete(frame.ref.imagePath)) {
      this.#spool.remove(frame.ref.imagePath).catch(() => undefined); // swept later
    }
  }

  /** Take no more; let the iterable clean up, and remove what is left of its pictures. */
  close(): void {
    if (!this.ended) {
      this.ended = true;
      // One that is just asked for a frame answers that first; nobody waits for either.
      void Promise.resolve()
        .then(() => this.#iterator.return?.())
        .catch(() => undefined);
    }
    for (const path of this.#spooled) this.#spool.remove(path).catch(() => undefined);
    this.#spooled.clear();
  }

  async #next(): Promise<SourceFrame | undefined> {
    if (this.#peeked !== undefined) {
      const frame = this.#peeked;
      this.#peeked = undefined;
      return frame;
    }
    if (this.ended) return undefined;
    let next: IteratorResult<ImageLike>;
    try {
      const result = this.#iterator.next();
      next = result instanceof Promise ? await result : await Promise.resolve(result);
    } catch (error) {
      this.ended = true; // an iterator that threw is over
      throw error;
    }
    if (this.ended) return undefined; // closed meanwhile
    if (next.done === true) {
      this.ended = true;
      return undefined;
    }
    const position = this.#taken++;
    const { image, path } = await locate(next.value, this.#folder, this.#spool);
    const spooled = "data" in image;
    if (spooled) {
      this.#spooled.add(path);
      this.#bytes += image.data.length;
      if (this.ended) this.close(); // closed while the file was written
    }
    const { timestamp, index, id } = image;
    const labels = { ...(timestamp !== undefined && { timestamp }), index: index ?? position, ...(id !== undefined && { id }) };
    return { ref: { imagePath: path, ...labels }, spooled };
  }
}

/** Return an image with the absolute path of its file, which is written for a picture in memory. */
export async function locate(like: ImageLike, folder: string, spool: Spool): Promise<{ image: Image; path: string }> {
  const image: Image =
    typeof like === "string" || like instanceof URL ? { path: like } : like instanceof Uint8Array ? { data: like } : like;
  if (typeof image !== "object" || image === null) throw new TypeError(`An image is a path, bytes or an object, not ${String(like)}.`);
  if ("data" in image) {
    if (!(image.data instanceof Uint8Array)) throw new TypeError("An image's data is a Uint8Array.");
    return { image, path: await spool.write(image.data) };
  }
  const { path } = image;
  if (path instanceof URL) return { image, path: fileURLToPath(path) };
  if (typeof path !== "string") throw new TypeError("An image has a `path`, a string or file: URL, or `data`, a Uint8Array.");
  return { image, path: resolve(folder, path) };
}
