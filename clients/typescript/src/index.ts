/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Client of vlmd, the vision-language daemon that an app spawns.
 *
 * @packageDocumentation
 */

export { Client } from "./client.js";
export type { CallOptions } from "./client.js";
export type { Batches } from "./describe.js";
export type { DescribeOptions } from "./describe-options.js";
export {
  BusyError,
  CancelledError,
  ClosedError,
  ConnectError,
  ConnectionLostError,
  CrashLoopError,
  DaemonError,
  DaemonNotFoundError,
  DeadlineError,
  EngineUnavailableError,
  InternalError,
  InvalidRequestError,
  ModelError,
  ProtocolError,
  RequestError,
  ShuttingDownError,
  StartError,
  UnsafeSocketError,
  VlmdError,
} from "./errors.js";
export type { DeadlinePhase } from "./errors.js";
export type { CountOptions, GenerateOptions, Generation } from "./generate.js";
export type { FileImage, Image, ImageLabels, ImageLike, Images, MemoryImage } from "./images.js";
export type { MemoryBlock, Message, Prompt } from "./prompt.js";
export { PROTOCOL_VERSION } from "./protocol.gen.js";
export type {
  CacheResult,
  CacheState,
  Code,
  CountResult,
  DaemonState,
  DedupeOptions,
  FinishReason,
  FrameCode,
  HelloResult,
  Id,
  ImageBlock,
  JsonObject,
  Limits,
  Mode,
  ModelState,
  ModelStatus,
  PingResult,
  Priority,
  QueueStatus,
  RequestCode,
  ShutdownResult,
  StatusResult,
  TextBlock,
  Usage,
} from "./protocol.gen.js";
export type { StartupEvent } from "./readiness.js";
export type { Batch, Delta, Frame, GenerateResult, JobProgress } from "./results.js";
export type { ClientOptions } from "./settings.js";
export type { Timeouts } from "./timeouts.js";
export { VERSION } from "./version.js";
