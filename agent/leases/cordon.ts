/** What an agent was told of whether it may take new work, and which word counts. No I/O. */
import { z } from "zod";
import type { Cordon__Output } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";

export const CordonState = z.object({
  /** Of the last change that was heard of. */
  revision: z.int(),
  cordoned: z.boolean(),
  by: z.string(),
  reason: z.string(),
  /** Wall time of the control plane; 0: what runs may take as long as it takes. */
  drainDeadlineMs: z.int(),
  /** Whether steps that are started once end then too. */
  drainOnce: z.boolean(),
});
export type CordonState = z.infer<typeof CordonState>;

/** Before anything was heard. */
export const NEVER_CORDONED: CordonState = {
  revision: 0,
  cordoned: false,
  by: "",
  reason: "",
  drainDeadlineMs: 0,
  drainOnce: false,
};
/**
 * What counts from now on; undefined when nothing changes: a control plane that says nothing of it, or a replica that lags
 * and says what is older than what is known.
 */
export function newerCordon(
  known: CordonState,
  told: Cordon__Output | null | undefined,
): CordonState | undefined {
  if (!told || Number(told.revision) <= known.revision) return undefined;
  const { cordoned, by, reason, drainOnce } = told;
  return {
    revision: Number(told.revision),
    cordoned,
    by,
    reason,
    drainDeadlineMs: Number(told.drainDeadlineMs),
    drainOnce,
  };
}
