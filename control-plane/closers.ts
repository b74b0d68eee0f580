/** What is open, to be closed again. */
import type { Logger } from "pino";

/** Closers run in reverse order, each even when another failed. */
export class Closers {
  readonly #closers: { what: string; close: () => Promise<unknown> }[] = [];
  readonly #log: Logger;

  constructor(log: Logger) {
    this.#log = log;
  }

  add(what: string, close: () => Promise<unknown>): void {
    this.#closers.push({ what, close });
  }

  async close(): Promise<void> {
    for (const { what, close } of this.#closers.splice(0).reverse()) {
      await close().catch((err: unknown) =>
        this.#log.warn({ err, part: what }, "part did not close cleanly"),
      );
    }
  }
}
