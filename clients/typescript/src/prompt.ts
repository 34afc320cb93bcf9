/** What a caller may pass as a prompt. @module */

import type { ClientCore } from "./core.js";
import { locate } from "./images.js";
import type { ImageLike } from "./images.js";
import type { ChatMessage, ImageBlock, PromptParams, TextBlock } from "./protocol.gen.js";

/** A picture in a message, in memory. */
export interface MemoryBlock {
  readonly type: "image";
  readonly data: Uint8Array;
}

/** One turn of a conversation. Pictures belong to the user's. */
export interface Message {
  readonly role: "system" | "user" | "assistant";
  readonly content: string | readonly (TextBlock | ImageBlock | MemoryBlock)[];
}

/** A single user turn, or a conversation. */
export type Prompt = string | readonly Message[];

/** The fields of the params that hold the prompt. */
export type PromptFields = Pick<PromptParams, "images"> &
  ({ readonly prompt: string } | { readonly messages: readonly ChatMessage[] });

/** Whether only a model that sees can read it. */
export function hasPictures(prompt: Prompt, images: readonly ImageLike[] = []): boolean {
  if (images.length > 0) return true;
  if (typeof prompt === "string") return false;
  return prompt.some(({ content }) => typeof content !== "string" && content.some((block) => block.type === "image"));
}

/** A prompt as the daemon takes it: paths absolute, pictures in memory in files until `release`. */
export class PreparedPrompt {
  readonly #core: ClientCore;
  readonly #files: string[] = [];
  readonly #folder = process.cwd();

  constructor(core: ClientCore) {
    this.#core = core;
  }

  /** Return the fields. @throws TypeError - an image is none. */
  async fields(prompt: Prompt, images: readonly ImageLike[] = []): Promise<PromptFields> {
    const refs: { readonly imagePath: string }[] = [];
    for (const image of images) refs.push({ imagePath: await this.#locate(image) });
    const some = refs.length > 0 ? { images: refs } : {};
    if (typeof prompt === "string") return { prompt, ...some };
    const messages: ChatMessage[] = [];
    for (const message of prompt) messages.push(await this.#message(message));
    return { messages, ...some };
  }

  /** Remove the files of pictures in memory. */
  release(): void {
    for (const path of this.#files.splice(0)) this.#core.spool.remove(path).catch(() => undefined); // swept later
  }

  async #message({ role, content }: Message): Promise<ChatMessage> {
    if (typeof content === "string") return { role, content };
    const blocks: (TextBlock | ImageBlock)[] = [];
    for (const block of content) {
      if (block.type === "text") blocks.push(block);
      else blocks.push({ type: "image", imagePath: await this.#locate("data" in block ? block.data : block.imagePath) });
    }
    return { role, content: blocks };
  }

  async #locate(like: ImageLike): Promise<string> {
    const { image, path } = await locate(like, this.#folder, this.#core.spool);
    if ("data" in image) this.#files.push(path);
    return path;
  }
}
