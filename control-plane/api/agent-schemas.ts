/** What the API takes of somebody who puts an agent out, or wants that it takes no new work; and what it says of that. */
import { z } from "@hono/zod-openapi";

/** Part of an agent. */
export const CordonView = z
  .object({
    atMs: z.int(),
    by: z.string(),
    reason: z.string(),
    drain: z
      .object({
        deadlineMs: z.int().nullable().openapi({
          description: "When what still runs ends as interrupted; null: it may take as long as it takes",
        }),
        once: z.boolean().openapi({ description: "Whether that includes steps that are started once" }),
      })
      .nullable()
      .openapi({ description: "Null: what runs there goes on" }),
    state: z.enum(["not-heard", "cordoned", "draining", "drained"]).openapi({
      description:
        "not-heard: the agent has not said yet that it knows. drained: it knows, and holds nothing any more",
    }),
    left: z.int().nullable().openapi({
      description: "What it held when it was heard last: attempts, and outcomes not delivered",
    }),
  })
  .nullable()
  .openapi({ description: "It takes no new work, until somebody says that it may" });

/** Kept with the agent, and shown to whoever may see the fleet. */
export const RevokeAgentBody = z
  .strictObject({ reason: z.string().trim().min(1).max(500) })
  .openapi("RevokeAgent");

const CordonReason = z.string().trim().max(500).default("");

export const CordonAgentBody = z.strictObject({ reason: CordonReason }).openapi("CordonAgent");

/** A maintenance that is planned for longer than this is a revocation. */
const DRAIN_MAX_MS = 7 * 24 * 3_600_000;

export const DrainAgentBody = z
  .strictObject({
    reason: CordonReason,
    withinMs: z.int().min(0).max(DRAIN_MAX_MS).optional().openapi({
      description: "After so long, what still runs ends as interrupted, and is offered to others",
    }),
    once: z
      .boolean()
      .default(false)
      .openapi({ description: "Ends also steps that are started once; they fail" }),
  })
  .refine(({ withinMs, once }) => !once || withinMs !== undefined, {
    message: "needs withinMs: without a deadline nothing is ended",
    path: ["once"],
  })
  .openapi("DrainAgent");
