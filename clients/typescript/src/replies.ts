/** The shapes of what a daemon sends, checked against the generated types by the compiler. @module */

import { decodeLine } from "./codec.js";
import type {
  CacheResult,
  CountResult,
  FrameResult,
  HelloResult,
  Id,
  Limits,
  ModelStatus,
  PingResult,
  Progress,
  QueueStatus,
  ShutdownResult,
  StatusResult,
  Usage,
} from "./protocol.gen.js";
import { anything, flag, id, integer, list, nullable, number, object, optional, record, text } from "./shape.js";
import type { Shape } from "./shape.js";

/** Any line from the daemon, as it is first read. */
export interface Reply {
  readonly id?: Id;
  readonly result?: unknown;
  readonly delta?: string;
  readonly reasoningDelta?: string;
  readonly text?: string;
  readonly reasoning?: string;
  readonly finishReason?: string;
  readonly usage?: Usage;
  readonly batch?: number;
  readonly results?: readonly FrameResult[];
  readonly partial?: boolean;
  readonly progress?: Progress;
  readonly error?: string;
  readonly code?: string;
  readonly retryable?: boolean;
  readonly data?: Readonly<Record<string, unknown>>;
  readonly done?: boolean;
  readonly event?: string;
  readonly model?: string;
  readonly state?: string;
  readonly stage?: string;
  readonly fraction?: number;
}

const progress: Shape<Progress> = object<Progress>({ current: integer, total: integer });

const usage: Shape<Usage> = object<Usage>({
  promptTokens: integer,
  completionTokens: integer,
  tokensPerS: number,
  timeToFirstTokenS: number,
  peakMemoryBytes: integer,
});

const frame: Shape<FrameResult> = object<FrameResult>({
  index: integer,
  timestamp: nullable(number),
  imagePath: text,
  description: text,
  activity: text,
  apps: list(text),
  topics: list(text),
  raw_response: optional(text),
  record: anything,
  error: optional(text),
  code: optional(text),
  id: optional(id),
  duplicateOf: optional(integer),
  cached: optional(flag),
});

const reply: Shape<Reply> = object<Reply>({
  id: optional(id),
  result: anything,
  delta: optional(text),
  reasoningDelta: optional(text),
  text: optional(text),
  reasoning: optional(text),
  finishReason: optional(text),
  usage: optional(usage),
  batch: optional(integer),
  results: optional(list(frame)),
  partial: optional(flag),
  progress: optional(progress),
  error: optional(text),
  code: optional(text),
  retryable: optional(flag),
  data: optional(record),
  done: optional(flag),
  event: optional(text),
  model: optional(text),
  state: optional(text),
  stage: optional(text),
  fraction: optional(number),
});

const model: Shape<ModelStatus> = object<ModelStatus>({
  name: text,
  state: text,
  kind: optional(text),
  stage: optional(text),
  fraction: optional(number),
  error: optional(text),
  code: optional(text),
  pid: optional(integer),
  memoryBytes: optional(integer),
  retryAfterMs: optional(integer),
  active: optional(integer),
  engine: optional(record),
});

const limits: Shape<Limits> = object<Limits>({
  maxFrameBytes: integer,
  maxImages: integer,
  maxBatchSize: integer,
  maxTokens: integer,
  maxInFlight: integer,
  maxWaitingPlain: integer,
  maxSchemaBytes: integer,
});

const queue: Shape<QueueStatus> = object<QueueStatus>({
  jobs: integer,
  queued: integer,
  decoding: integer,
  ready: integer,
  running: integer,
});

/** The result of `hello`. */
export const helloResult: Shape<HelloResult> = object<HelloResult>({
  protocol: integer,
  version: text,
  pid: integer,
  state: text,
  capabilities: list(text),
  limits,
  fingerprint: text,
  models: list(model),
});

/** The result of `ping`. */
export const pingResult: Shape<PingResult> = object<PingResult>({ state: text, uptimeS: number });

/** The result of `cache`. */
export const cacheResult: Shape<CacheResult> = object<CacheResult>({
  state: text,
  path: text,
  enabled: flag,
  entries: optional(integer),
  bytes: optional(integer),
  maxBytes: integer,
  maxAgeS: number,
  hits: optional(integer),
  misses: optional(integer),
  stored: optional(integer),
  warning: optional(text),
  removed: optional(integer),
});

/** The result of `status`. */
export const statusResult: Shape<StatusResult> = object<StatusResult>({
  version: text,
  protocol: integer,
  pid: integer,
  state: text,
  uptimeS: number,
  socket: text,
  logFile: nullable(text),
  owned: flag,
  fingerprint: text,
  connections: integer,
  memoryBytes: integer,
  models: list(model),
  queue,
  imageProcesses: list(integer),
  framesDone: integer,
  framesFailed: integer,
  faults: optional(list(text)),
  framesCached: optional(integer),
  framesDuplicate: optional(integer),
  cache: optional(cacheResult),
});

/** The result of `count_tokens`. */
export const countResult: Shape<CountResult> = object<CountResult>({
  promptTokens: integer,
  contextTokens: integer,
  maxTokens: integer,
  fits: flag,
});

/** The result of `shutdown`. */
export const shutdownResult: Shape<ShutdownResult> = object<ShutdownResult>({ state: text });

/**
 * Return a line of the daemon.
 *
 * @throws {@link Malformed} it is not a line that a daemon may send.
 */
export function decodeReply(line: Uint8Array): Reply {
  return reply(decodeLine(line), "line");
}
