/** What a caller may ask of `describe`. @module */

import type { DedupeOptions, JsonObject, Mode, Priority } from "./protocol.gen.js";
import type { JobProgress } from "./results.js";
import type { Timeouts } from "./timeouts.js";

/** Options of `describe` and `describeAll`. */
export interface DescribeOptions {
  /** Ends the iteration with its reason, and cancels what is under way. */
  readonly signal?: AbortSignal;
  /** Called before each batch is returned. */
  readonly onProgress?: (progress: JobProgress) => void;
  /** Frames of one batch; in mode `interleaved` also of one prompt. Default: 4. */
  readonly batchSize?: number;
  /** Budget of one batch. Default: 2,000. */
  readonly maxTokens?: number;
  /** Budget of one frame, in mode `parallel`. */
  readonly maxTokensPerFrame?: number;
  /** `parallel` (default) for each frame on its own, `interleaved` for frames that explain each other. */
  readonly mode?: Mode;
  /** Asked for by name; by default the daemon's. */
  readonly model?: string;
  /** Instructions instead of the built-in ones. */
  readonly prompt?: string;
  /** JSON Schema of each frame's `record`. */
  readonly schema?: JsonObject;
  /** False leaves the model's output unconstrained. */
  readonly grammar?: boolean;
  /** `interactive` goes before `batch` (default). */
  readonly priority?: Priority;
  /**
   * True to describe only frames that differ from the last described one by more than a codec's noise, a blinking text
   * cursor or a moved mouse pointer; `threshold` is the fraction of the pixels that may differ beyond that. The other
   * frames carry that one's text and name it in `duplicateOf`. In any case frames of equal bytes are inferred once,
   * unless this is false. A list is asked for in requests of 256 frames, what comes slowly in smaller ones; each goes on
   * from the last that has ended, on the same connection.
   */
  readonly dedupe?: boolean | DedupeOptions;
  /** True to have the daemon's result store asked and filled, false to have it left alone. Default: its configuration. */
  readonly cache?: boolean;
  /** Deadlines that differ from the client's. */
  readonly timeouts?: Partial<Timeouts>;
  /** Instead of the client's. */
  readonly resume?: boolean;
}
