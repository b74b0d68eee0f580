/** What the API says of the ledger. */
import { z } from "@hono/zod-openapi";

export const LedgerKeyView = z
  .object({
    origin: z.string().openapi({ description: "First line of each checkpoint, and the name of the key" }),
    verifierKey: z.string().openapi({ description: "`name+id+key`, as C2SP signed notes have it" }),
    trustDomain: z.string(),
    rootsPem: z.array(z.string()).openapi({ description: "What certificates of agents lead to" }),
    trouble: z
      .string()
      .openapi({ description: "Empty, or why the ledger is not written or not to be believed" }),
  })
  .openapi("LedgerKey");
export type LedgerKeyView = z.infer<typeof LedgerKeyView>;

const LedgerLeafView = z.object({
  index: z.int().min(0),
  kind: z.string().openapi({ description: "`receipt`, or the kind of the decision" }),
  attempt: z.int(),
  epoch: z.int(),
  leaf: z
    .string()
    .openapi({ description: "The leaf itself, base64: canonical JSON (ledger-entry.schema.json)" }),
  proof: z.array(z.string()).openapi({ description: "RFC 6962 audit path, base64, from the leaf upwards" }),
});

export const LedgerProofView = z
  .object({
    v: z.literal(1),
    run: z.string(),
    step: z.string(),
    checkpoint: z.string().openapi({ description: "C2SP signed note: the tree that the proofs are of" }),
    key: LedgerKeyView.omit({ trouble: true }),
    leaves: z.array(LedgerLeafView),
  })
  .openapi("LedgerProof");
export type LedgerProofView = z.infer<typeof LedgerProofView>;

export const ReconcileFinding = z
  .object({
    kind: z.enum([
      "missing", // a message should have a leaf that is not there
      "double", // a leaf is there again, or out of order
      "unfounded", // a leaf whose message is not there, or says no such thing
      "changed", // a leaf is not what its message says
      "no-receipt", // an attempt of a data-bound step has ended without one
      "bad-receipt", // a receipt does not verify
    ]),
    where: z.string().openapi({ description: "The leaf, the message or the attempt" }),
    detail: z.string(),
  })
  .openapi("ReconcileFinding");
export type ReconcileFinding = z.infer<typeof ReconcileFinding>;

export const ReconcileSummary = z
  .object({
    leaves: z.int().openapi({ description: "That are where they belong" }),
    messages: z.int().openapi({ description: "That were made leaves of again" }),
    receipts: z.int(),
    ended: z.int().openapi({
      description: "Attempts of data-bound steps that have ended, or were lost with their agent",
    }),
    findings: z.int(),
  })
  .openapi("ReconcileSummary");
export type ReconcileSummary = z.infer<typeof ReconcileSummary>;
