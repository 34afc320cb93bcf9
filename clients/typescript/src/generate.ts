/** Runs one `generate`, and `count_tokens`. @module */

import { Ask } from "./ask.js";
import type { AskOptions } from "./ask.js";
import { Malformed } from "./codec.js";
import type { ClientCore } from "./core.js";
import { CancelledError, ProtocolError } from "./errors.js";
import type { ImageLike } from "./images.js";
import { PreparedPrompt, hasPictures } from "./prompt.js";
import type { Prompt, PromptFields } from "./prompt.js";
import type { CountResult, GenerateParamsBase, PromptParamsBase } from "./protocol.gen.js";
import { countResult } from "./replies.js";
import type { Delta, GenerateResult } from "./results.js";
import type { Answered, Generated, Piece } from "./session.js";
import { requestedModel } from "./settings.js";

type Given<T> = { readonly [Key in keyof T]: Exclude<T[Key], null> };

/** Options of `countTokens`. */
export interface CountOptions extends AskOptions, Given<Omit<PromptParamsBase, "images">> {
  /** Pictures before the text of the last user turn. */
  readonly images?: readonly ImageLike[];
}

/** Options of `generate`: those of `countTokens`, and how the text is made. */
export interface GenerateOptions extends CountOptions, Given<Omit<GenerateParamsBase, "images" | "stream">> {}

/**
 * One generation: iterate over its pieces, or await its `text()` or `result()`, also after the iteration. Nothing is
 * asked before. To leave the loop cancels it on the daemon.
 */
export class Generation implements AsyncIterableIterator<Delta> {
  readonly #core: ClientCore;
  readonly #ask: Ask;
  readonly #prepared: PreparedPrompt;
  readonly #prepare: () => Promise<PromptFields>;
  readonly #params: Omit<GenerateParamsBase, "images">;
  #fields: PromptFields | undefined;
  #textSoFar = "";
  #result: GenerateResult | undefined;
  #failure: { readonly error: unknown } | undefined;
  #over = false;
  #turn: Promise<unknown> = Promise.resolve();

  /** @internal */
  constructor(core: ClientCore, prompt: Prompt, options: GenerateOptions) {
    core.checkOpen();
    const { signal: _signal, timeouts: _timeouts, resume: _resume, images, ...params } = options;
    this.#core = core;
    this.#ask = new Ask(core, options);
    this.#prepared = new PreparedPrompt(core);
    this.#prepare = () => this.#prepared.fields(prompt, images);
    this.#params = { ...params, ...requestedModel(core.settings, params.model, hasPictures(prompt, images)) };
  }

  /** The text that came, also of a generation that failed. */
  get textSoFar(): string {
    return this.#textSoFar;
  }

  /** Return the next piece. @throws {@link VlmdError} it cannot go on; the reason of an aborted `signal`. */
  next(): Promise<IteratorResult<Delta, undefined>> {
    const turn = this.#turn.then(() => this.#ask.during(() => this.#next()));
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  /** Leave: cancel it on the daemon. */
  return(): Promise<IteratorResult<Delta, undefined>> {
    this.#leave();
    return Promise.resolve({ done: true, value: undefined });
  }

  /** Wait for the end. @throws {@link VlmdError} it failed, or was left before its end. */
  async result(): Promise<GenerateResult> {
    while ((await this.next()).done !== true) continue;
    if (this.#result !== undefined) return this.#result;
    if (this.#failure !== undefined) throw this.#failure.error;
    throw new CancelledError("The generation was left before its end.", { code: "cancelled" });
  }

  /** Wait for the end and return the whole text. @throws {@link VlmdError} as `result`. */
  async text(): Promise<string> {
    return (await this.result()).text;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  async #next(): Promise<IteratorResult<Delta, undefined>> {
    if (this.#over) return { done: true, value: undefined };
    try {
      this.#core.checkOpen();
      const fields = (this.#fields ??= await this.#prepare());
      const event = await this.#ask.next({ method: "generate", params: { ...this.#params, ...fields } });
      if (event.type === "piece") return { done: false, value: this.#add(event) };
      this.#end(event);
    } catch (error) {
      if (this.#over) return { done: true, value: undefined }; // left meanwhile
      this.#failure = { error };
      this.#leave();
      throw error;
    }
    this.#leave();
    return { done: true, value: undefined };
  }

  #add(piece: Piece): Delta {
    this.#textSoFar += piece.text;
    return { text: piece.text, reasoning: piece.reasoning };
  }

  #end(event: Generated | Answered): void {
    if (event.type !== "generated") {
      throw this.#ask.violated(new ProtocolError("The daemon's answer to generate has no text."));
    }
    const { text, reasoning, finishReason, usage } = event;
    if (text !== this.#textSoFar) {
      const message =
        `The daemon's text of ${text.length} characters is not what its deltas make, ` +
        `which are ${this.#textSoFar.length} characters.`;
      throw this.#ask.violated(new ProtocolError(message));
    }
    this.#result = { text, reasoning, finishReason, usage };
  }

  #leave(): void {
    if (this.#over) return;
    this.#over = true;
    this.#ask.leave();
    this.#prepared.release();
  }
}

/** Return the answer to `count_tokens`. @throws {@link VlmdError} there is none. */
export async function countTokens(core: ClientCore, prompt: Prompt, options: CountOptions): Promise<CountResult> {
  core.checkOpen();
  const { signal: _signal, timeouts: _timeouts, resume: _resume, images, ...params } = options;
  const ask = new Ask(core, options);
  const prepared = new PreparedPrompt(core);
  return ask.during(async () => {
    try {
      const fields = await prepared.fields(prompt, images);
      const model = requestedModel(core.settings, params.model, hasPictures(prompt, images));
      const event = await ask.next({ method: "count_tokens", params: { ...params, ...model, ...fields } });
      return countResult(event.type === "answered" ? event.result : undefined, "result");
    } catch (error) {
      ask.leave();
      if (!(error instanceof Malformed)) throw error;
      throw ask.violated(new ProtocolError(`The daemon's answer to count_tokens is of another form: ${error.message}`));
    } finally {
      prepared.release();
    }
  });
}
