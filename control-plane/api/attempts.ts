/** Attempts to show who one is: those that fail are counted for their address, and past a limit nothing is looked at. */
import { createHash } from "node:crypto";
import type { Context } from "hono";
import { InsituError } from "../../shared/errors.ts";
import { FailureLimit } from "../access/failure-limit.ts";
import type { ApiEnv, ApiOptions } from "./context.ts";

export class Attempts {
  readonly #limit = new FailureLimit();
  readonly #options: Pick<ApiOptions, "clock" | "log">;
  #failures = 0;

  constructor(options: Pick<ApiOptions, "clock" | "log">) {
    this.#options = options;
  }

  /** Calls `attempt`, whose answer null, or `auth.missing`, is a failure. @throws `limit.exceeded` before it is called */
  async make<T>(
    c: Context<ApiEnv>,
    secret: string | null,
    attempt: () => Promise<T | null>,
  ): Promise<T | null> {
    const { clock } = this.#options;
    const peer = peerOf(c);
    const digest = secret === null ? undefined : digestOf(secret);
    if (peer === undefined) return await attempt();
    const waitMs = this.#limit.waitMs(peer, clock.monotonicMs(), digest);
    if (waitMs > 0) throw tooMany(waitMs);
    const failed = (reason: InsituError | null): void => {
      this.#limit.failed(peer, clock.monotonicMs(), digest);
      this.#failures += 1;
      // In words: the stack of a refusal tells nothing, and anybody can make as many as the limit lets through.
      const why = reason === null ? {} : { why: reason.details.why ?? reason.message };
      const facts = { peer, path: c.req.path, requestId: c.get("requestId"), failures: this.#failures };
      this.#options.log.warn({ ...facts, ...why }, "authentication failed");
    };
    try {
      const found = await attempt();
      if (found === null) failed(null);
      else if (digest !== undefined) this.#limit.succeeded(peer, digest);
      return found;
    } catch (err) {
      if (err instanceof InsituError && err.code === "auth.missing") failed(err);
      throw err;
    }
  }
}

/** Missing only for an app that is called without a server in front. */
export function peerOf(c: Context<ApiEnv>): string | undefined {
  return (c.env as ApiEnv["Bindings"] | undefined)?.peer;
}

export function tooMany(waitMs: number): InsituError {
  const seconds = Math.ceil(waitMs / 1_000);
  const message = `too many failed attempts from your address; try again in ${seconds} s`;
  return new InsituError("limit.exceeded", message, { retryable: true, details: { retryAfterMs: waitMs } });
}

function digestOf(secret: string): string {
  return createHash("sha256").update(secret, "utf8").digest("base64url");
}
