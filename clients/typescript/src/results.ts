/** What a caller gets. @module */

import type { Code, FinishReason, FrameResult, Id, Usage } from "./protocol.gen.js";

/** What one frame shows. */
export interface Frame {
  /** Whether the frame was described. */
  readonly ok: boolean;
  /** The caller's own number, else the frame's position among all images of the call. */
  readonly index: number;
  /** As the caller gave it. */
  readonly timestamp: number | null;
  /** Absolute; empty for a picture in memory. */
  readonly imagePath: string;
  /** What can be seen. */
  readonly description: string;
  /** What is being done. */
  readonly activity: string;
  /** Programs that can be seen. */
  readonly apps: readonly string[];
  /** What it is about. */
  readonly topics: readonly string[];
  /** The model's text, where it is no record. */
  readonly rawResponse?: string;
  /** The object that validates against the caller's schema. */
  readonly record?: unknown;
  /** Why this frame failed; the string fields are filled all the same. */
  readonly error?: string;
  /** A code of a frame, where it failed. */
  readonly code?: Code | (string & Record<never, never>);
  /** As the caller gave it. */
  readonly id?: Id;
  /** `index` of the earlier frame whose text this one carries, where `dedupe` was asked for. */
  readonly duplicateOf?: number;
  /** Whether the text came from the result store, where `cache` was asked for. */
  readonly cached?: boolean;
}

/** Frames delivered so far, and of how many; `total` is undefined while an iterable's end is not in sight. */
export interface JobProgress {
  readonly current: number;
  readonly total: number | undefined;
}

/** Some frames, in order. */
export interface Batch {
  /** Number of the batch, from 1. */
  readonly batch: number;
  /** Its frames. */
  readonly results: readonly Frame[];
  /** Of the whole call. */
  readonly progress: JobProgress;
  /**
   * Whether it is the last. Of an iterable that takes over a second to say whether there is another frame, the end is
   * not known in time: no batch is marked.
   */
  readonly done: boolean;
}

/** A piece of a generated text, or of the thinking before it; the other one is empty. */
export interface Delta {
  readonly text: string;
  readonly reasoning: string;
}

/** The end of a generation. */
export interface GenerateResult {
  /** The whole text. */
  readonly text: string;
  /** What the model thought before it, where it does that. */
  readonly reasoning: string | undefined;
  /** Why the text ended. */
  readonly finishReason: FinishReason | (string & Record<never, never>);
  /** What it took. */
  readonly usage: Usage;
}

/** Return the frame of a result line. */
export function frameOf(result: FrameResult, inMemory: boolean): Frame {
  const { raw_response: rawResponse, imagePath, ...fields } = result;
  return {
    ...fields,
    imagePath: inMemory ? "" : imagePath,
    ok: fields.error === undefined && fields.code === undefined,
    ...(rawResponse !== undefined && { rawResponse }),
  };
}
