/** What a caller may ask of `describe`. @module */

import type { JsonObject, Mode, Priority } from "./protocol.gen.js";
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
  /** Deadlines that differ from the client's. */
  readonly timeouts?: Partial<Timeouts>;
  /** Instead of the client's. */
  readonly resume?: boolean;
}
