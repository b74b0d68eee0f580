/** Succeeds at once, without a process: for measuring what the product itself costs, and for joins in a DAG. */
import { createHash } from "node:crypto";
import type { RawOutput } from "../egress/egress-gate.ts";
import type { Execution, Executor } from "./executor.ts";

const NULL_DIGEST = `sha256:${createHash("sha256").update("null").digest("hex")}`;

export const noopExecutor: Executor = {
  kind: "noop",
  start(offer): Execution {
    const outputs: Record<string, RawOutput> = {};
    for (const name of Object.keys(offer.step.outputs))
      outputs[name] = { type: "json", digest: NULL_DIGEST, text: "null" };
    const result = {
      status: "succeeded",
      exitCode: 0,
      signal: null,
      error: null,
      outputs,
      artifacts: [],
    } as const;
    return {
      done: Promise.resolve({ ...result, artifacts: [] }),
      stop: () => undefined,
      forget: () => Promise.resolve(),
    };
  },
  resume: () => undefined,
  cleanUp: () => Promise.resolve(),
};
