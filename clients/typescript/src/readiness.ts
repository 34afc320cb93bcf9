/** How far a start has come, for a splash screen. @module */

import type { HelloResult } from "./protocol.gen.js";
import type { News } from "./session.js";

/** A step of a start, in this order; `loading` comes again and again. A daemon that runs already is at once `ready`. */
export type StartupEvent =
  | {
      /** Looking for a running daemon, and for the command that starts one. */
      readonly phase: "finding";
    }
  | {
      /** Only with `install: true`: pip is at work. */
      readonly phase: "installing";
      /** What it printed. */
      readonly line: string;
    }
  | {
      /** A daemon was spawned. */
      readonly phase: "starting";
      readonly pid: number;
    }
  | {
      /** The model is being loaded. */
      readonly phase: "loading";
      readonly model: string | undefined;
      /** What it does just now, in a word. */
      readonly stage: string | undefined;
      /** From 0 to 1, where it is known. */
      readonly fraction: number | undefined;
    }
  | {
      /** Requests run at once from now on. */
      readonly phase: "ready";
      readonly pid: number;
      readonly models: readonly string[];
    };

/** Gets the steps of a start. */
export type StartupListener = (event: StartupEvent) => void;

/** Passes the steps of a start to whoever listens. */
export class StartupFeed {
  readonly #listeners = new Set<StartupListener>();

  /** Listen; return how to stop that. */
  listen(listener: StartupListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Tell everyone. */
  tell(event: StartupEvent): void {
    for (const listener of [...this.#listeners]) {
      // A boundary: a caller's listener must not end a start.
      try {
        listener(event);
      } catch (error) {
        process.emitWarning(`A startup listener of vlmd threw: ${String(error)}`);
      }
    }
  }
}

/** The states of a daemon's models, as `hello` and the news tell them. */
export class Readiness {
  readonly #states = new Map<string, string>();
  readonly #hello: HelloResult;
  readonly #tell: StartupListener;
  #told = false;

  constructor(hello: HelloResult, tell: StartupListener) {
    this.#hello = hello;
    this.#tell = tell;
    for (const { name, state, stage, fraction } of hello.models) {
      this.#states.set(name, state);
      if (state === "loading") tell({ phase: "loading", model: name, stage, fraction });
    }
    this.#check();
  }

  /** Whether every model runs requests at once. */
  get ready(): boolean {
    return [...this.#states.values()].every((state) => state === "ready");
  }

  /** Whether a model failed for good, or for now. */
  get failed(): boolean {
    return [...this.#states.values()].some((state) => state === "failed" || state === "unavailable");
  }

  /** Take news of a model. */
  note(news: News): void {
    if (news.event !== "model" || news.model === undefined || news.state === undefined) return;
    this.#states.set(news.model, news.state);
    if (news.state === "loading" || news.state === "restarting") {
      this.#told = false;
      this.#tell({ phase: "loading", model: news.model, stage: news.stage, fraction: news.fraction });
    }
    this.#check();
  }

  #check(): void {
    if (this.#told || !this.ready) return;
    this.#told = true;
    this.#tell({ phase: "ready", pid: this.#hello.pid, models: [...this.#states.keys()] });
  }
}
