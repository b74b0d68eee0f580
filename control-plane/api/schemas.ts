/** What the HTTP API says, as Zod schemas: the OpenAPI document, the CLI's types and the routes come from here. */
import { z } from "@hono/zod-openapi";
import { DECISIONS } from "../../shared/engine/disconnection.ts";
import { Digest, Name } from "../../shared/model/names.ts";
import { KINDS, ParamValue } from "../../shared/model/spec.ts";
import {
  ArtifactRef,
  BoxRecord,
  EgressRecord,
  OutcomeStatus,
  OutputValue,
} from "../../shared/wire/attempt.ts";
import { GroupName, RIGHTS, ROLES } from "../access/rights.ts";
import { POISON_SOURCES } from "../poison/ports.ts";
import { CordonView } from "./agent-schemas.ts";

const StepStatus = z.enum([
  "pending",
  "ready",
  "offered",
  "running",
  "disconnected",
  "backoff",
  "succeeded",
  "failed",
  "skipped",
  "cancelled",
]);
export const RunStatus = z.enum(["running", "cancelling", "succeeded", "failed", "cancelled"]);
export const AtMs = z.int().openapi({ description: "Milliseconds since the Unix epoch" });

export const Problem = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: z.string(),
    instance: z.string().optional(),
    retryable: z.boolean().optional(),
    approval: z
      .object({ id: z.string(), expiresAtMs: AtMs })
      .optional()
      .openapi({ description: "With status 202: what a second person has to approve" }),
    errors: z
      .array(
        z.object({
          file: z.string().optional(),
          line: z.int().optional(),
          column: z.int().optional(),
          pointer: z.string().optional(),
          detail: z.string(),
          hint: z.string().optional(),
        }),
      )
      .optional(),
  })
  .openapi("Problem", { description: "RFC 9457 problem details" });
export type Problem = z.infer<typeof Problem>;

export const AttemptView = z
  .object({
    attempt: z.int(),
    epoch: z.int(),
    environment: z.string(),
    agent: z.string().nullable(),
    status: z.enum([
      "offered",
      "running",
      "disconnected",
      "resolved",
      "lost",
      "fenced",
      ...OutcomeStatus.options,
    ]),
    policyVersion: z.string(),
    offeredAtMs: AtMs,
    startedAtMs: AtMs.nullable(),
    finishedAtMs: AtMs.nullable(),
    exitCode: z.int().nullable(),
    signal: z.string().nullable(),
    error: z.object({ code: z.string(), message: z.string() }).nullable(),
    egress: z.array(EgressRecord),
    sandbox: BoxRecord.optional().openapi({ description: "What its processes ran in. Missing: not said" }),
    logLastSeq: z.int(),
    logDroppedBytes: z.int(),
  })
  .openapi("Attempt");
export type AttemptView = z.infer<typeof AttemptView>;

export const StepView = z
  .object({
    id: z.string(),
    status: StepStatus,
    needs: z.array(z.string()),
    reads: z.array(z.string()),
    writes: z.array(z.string()),
    environment: z.string().nullable(),
    agent: z.string().nullable(),
    /** Why it waits, in words, when it waits for something that a person would want to know. */
    waiting: z.object({ reason: z.string(), message: z.string() }).nullable(),
    startedAtMs: AtMs.nullable(),
    finishedAtMs: AtMs.nullable(),
    retryAtMs: AtMs.nullable(),
    error: z.object({ code: z.string(), message: z.string() }).nullable(),
    outputs: z.record(z.string(), OutputValue),
    artifacts: z.array(ArtifactRef),
    attempts: z.array(AttemptView),
  })
  .openapi("Step");
export type StepView = z.infer<typeof StepView>;

export const RunSummary = z
  .object({
    id: z.string(),
    pipeline: z.string(),
    version: z.string(),
    status: RunStatus,
    reason: z.string(),
    params: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
    createdBy: z.string(),
    createdAtMs: AtMs,
    finishedAtMs: AtMs.nullable(),
    counts: z.record(StepStatus, z.int()),
  })
  .openapi("RunSummary");
export type RunSummary = z.infer<typeof RunSummary>;

export const RunDetail = RunSummary.extend({
  steps: z.array(StepView),
  /** Sequence of the last event that this view contains; pass it as Last-Event-ID to follow from here. */
  eventSeq: z.int(),
}).openapi("Run");
export type RunDetail = z.infer<typeof RunDetail>;

export const AgentView = z
  .object({
    /** `environment/name` */
    id: z.string(),
    name: z.string(),
    environment: z.string(),
    connected: z.boolean(),
    connectedSinceMs: AtMs.nullable(),
    lastSeenMs: AtMs.nullable(),
    software: z.string(),
    hostname: z.string(),
    slots: z.int(),
    freeSlots: z.int(),
    executors: z.array(z.string()),
    datasets: z.array(z.string()),
    labels: z.record(z.string(), z.string()),
    sandbox: z
      .object({
        boxes: z.boolean().openapi({ description: "Whether each process step is boxed" }),
        summary: z.string(),
        held: z.record(z.string(), z.string()).openapi({ description: "Limit to what holds it" }),
        notHeld: z.record(z.string(), z.string()).openapi({ description: "Limit to why it is not held" }),
        unboxedUpTo: z
          .string()
          .openapi({ description: "Without boxes: the highest class of data that it takes all the same" }),
        letsOut: z.boolean().optional().openapi({
          description: "Whether steps can be let out to the hosts of their list, and to no other",
        }),
        runsContainers: z.boolean().optional().openapi({
          description: "Whether it takes steps that run a container image",
        }),
      })
      .nullable()
      .openapi({ description: "What process steps run in. Null: an agent that does not say" }),
    leases: z.array(z.object({ runId: z.string(), stepId: z.string(), attempt: z.int(), epoch: z.int() })),
    clockSkewMs: z.int().nullable(),
    spoolBytes: z.int(),
    droppedLogBytes: z.int(),
    notTakingWork: z.string(),
    sitePolicy: z
      .object({
        digest: z
          .string()
          .openapi({ description: "SHA-256 of the policy in force; empty: none can be used" }),
        trouble: z.string().openapi({ description: "Why the site's file as it is now is not in force" }),
      })
      .nullable()
      .openapi({ description: "What the agent's site allows by itself, while it is connected" }),
    reports: z.enum(["signed", "unsigned"]).openapi({ description: "Whether the agent signs its reports" }),
    refusedReports: z
      .object({ unsigned: z.int(), forged: z.int() })
      .openapi({ description: "Refused for good since the replica started that the agent is connected to" }),
    refusedOffers: z.int().openapi({ description: "Refused by the agent since it started" }),
    ledgerTrouble: z.string().openapi({ description: "Empty, or how the ledger contradicts its checkpoint" }),
    enrolledAtMs: AtMs,
    certificateNotAfterMs: AtMs,
    revoked: z
      .object({ atMs: AtMs, by: z.string(), reason: z.string() })
      .nullable()
      .openapi({ description: "Set for good: it is let in no more" }),
    cordon: CordonView,
  })
  .openapi("Agent");
export type AgentView = z.infer<typeof AgentView>;

/** One replica of the control plane. */
export const ServerView = z
  .object({
    id: z.string(),
    url: z.string().openapi({ description: "Of its API and console" }),
    gateway: z.string().openapi({ description: "host:port for agents" }),
    software: z.string(),
    startedAtMs: AtMs,
    alive: z.boolean().openapi({ description: "Whether it gave a sign of life within the last seconds" }),
    shards: z.array(z.int()).openapi({ description: "Shards of runs that it decides for, of 64" }),
  })
  .openapi("Server");
export type ServerView = z.infer<typeof ServerView>;

/** Where one step may run and why not elsewhere. */
export const StepPlan = z
  .object({
    step: z.string(),
    reads: z.array(z.string()),
    writes: z.array(z.string()),
    environments: z.array(
      z.object({
        environment: z.string(),
        allowed: z.boolean(),
        /** Agents of it that are connected now. */
        agents: z.int(),
        reasons: z.array(
          z.object({
            policy: z.string().openapi({ description: "The rule that decided, e.g. residency" }),
            dataset: z.string().nullable(),
            message: z.string(),
          }),
        ),
      }),
    ),
  })
  .openapi("StepPlan");
export type StepPlan = z.infer<typeof StepPlan>;

export const PlanView = z
  .object({
    pipeline: z.string(),
    version: z.string(),
    policyVersion: z.string(),
    placeable: z.boolean(),
    steps: z.array(StepPlan),
  })
  .openapi("Plan");
export type PlanView = z.infer<typeof PlanView>;

export const AppliedChange = z
  .object({
    kind: z.enum(KINDS),
    name: z.string(),
    action: z.enum(["created", "unchanged", "updated", "new-version", "deleted"]),
    version: z.string().nullable(),
  })
  .openapi("AppliedChange");
export type AppliedChange = z.infer<typeof AppliedChange>;

/** One decoded piece of a step's output. `data` is base64. */
export const LogLine = z
  .object({
    step: z.string(),
    attempt: z.int(),
    epoch: z.int(),
    seq: z.int(),
    atMs: AtMs,
    stream: z.enum(["stdout", "stderr", "agent"]),
    data: z.string(),
    droppedBytes: z.int(),
    /** Ends of lines among them, where they are known. */
    droppedLines: z.int().optional(),
    /** Why what is stored here is not shown: it is not what the agent signed. `data` is empty, and `seq` the first entry. */
    refused: z.string().optional(),
  })
  .openapi("LogEntry");
export type LogLine = z.infer<typeof LogLine>;

/** Documents as a person wrote them, with the text files that their steps name. */
export const DocumentSetBody = z
  .strictObject({
    documents: z.array(z.strictObject({ file: z.string().max(4096), text: z.string() })).max(10_000),
    attachments: z.record(z.string(), z.string()),
  })
  .openapi("DocumentSet");

/** Names a pipeline that is stored; the newest version unless one is named. */
export const StoredPipelineBody = z
  .strictObject({ pipeline: Name, version: Digest.optional() })
  .openapi("StoredPipeline");

export const PlanRequest = z.union([DocumentSetBody, StoredPipelineBody]).openapi("PlanRequest");

export const StartRunBody = z
  .strictObject({
    pipeline: Name,
    version: Digest.optional(),
    params: z.record(z.string(), ParamValue).default({}),
  })
  .openapi("StartRun");

export const ResolveStepBody = z
  .object({
    as: z.enum(DECISIONS).openapi({ description: "What became of it; `reassign`: another agent gets it" }),
    reason: z.string().min(1).max(1000),
    evenIfItRan: z
      .boolean()
      .default(false)
      .openapi({ description: "Of a step with `once`: start it again although it may have run" }),
  })
  .openapi("ResolveStep");

export const CancelRunBody = z
  .strictObject({ reason: z.string().max(1024).default("") })
  .openapi("CancelRun");

export const JoinTokenBody = z
  .strictObject({
    environment: Name,
    ttlMs: z
      .int()
      .min(1_000)
      .max(30 * 86_400_000)
      .default(3_600_000),
    uses: z.int().min(1).max(10_000).default(1),
    approval: z
      .boolean()
      .default(false)
      .openapi({ description: "Whether a person has to approve each agent that comes with it" }),
  })
  .openapi("CreateJoinToken");

/** An agent that has a join token and waits for a person. */
export const JoinRequestView = z
  .object({
    environment: z.string(),
    name: z.string(),
    fingerprint: z.string().openapi({ description: "Of its public key, as the agent's own log shows it" }),
    address: z.string(),
    recovers: z
      .boolean()
      .openapi({ description: "Whether it was enrolled before, and its certificate has expired" }),
    askedAtMs: AtMs,
    expiresAtMs: AtMs.openapi({
      description: "Of its token, if it has one: it has to be approved before that",
    }),
  })
  .openapi("JoinRequest");
export type JoinRequestView = z.infer<typeof JoinRequestView>;

export const JoinDecisionBody = z
  .strictObject({
    approve: z.boolean(),
    fingerprint: z.string().regex(/^sha256:[0-9a-f]{64}$/, "sha256: and 64 hexadecimal digits"),
  })
  .openapi("DecideJoinRequest");

export const NewJoinTokenView = z
  .object({ id: z.string(), token: z.string(), expiresAtMs: AtMs })
  .openapi("NewJoinToken");
export type NewJoinTokenView = z.infer<typeof NewJoinTokenView>;

export const JoinTokenView = z
  .object({
    id: z.string().openapi({ description: "The beginning of the SHA-256 of its secret" }),
    environment: z.string(),
    state: z.enum(["valid", "used", "expired", "revoked"]),
    approval: z.boolean(),
    uses: z.int(),
    usesLeft: z.int(),
    createdBy: z.string(),
    createdAtMs: AtMs,
    expiresAtMs: AtMs,
    revoked: z.object({ atMs: AtMs, by: z.string() }).nullable(),
    usedBy: z
      .array(
        z.object({
          agent: z.string(),
          fingerprint: z.string().openapi({ description: "Of the key that it came with" }),
          atMs: AtMs,
        }),
      )
      .openapi({ description: "Of a token that asks for approval: also who waits for it, or was denied" }),
  })
  .openapi("JoinToken");
export type JoinTokenView = z.infer<typeof JoinTokenView>;

const Deed = z.object({ atMs: AtMs, by: z.string() }).nullable();

export const AuthorityView = z
  .object({
    revision: z.int().openapi({ description: "Grows with each change; 1: nothing was ever changed" }),
    issuers: z
      .array(
        z.object({
          id: z.string(),
          state: z.enum(["next", "active", "former", "retired"]),
          serving: z.boolean().openapi({ description: "Whether servers show certificates of it" }),
          rootPin: z.string().openapi({ description: "SHA-256 of the public key of its root" }),
          subject: z.string().nullable().openapi({ description: "Null: its files are not at this replica" }),
          intermediate: z.boolean().nullable(),
          pin: z.string().nullable().openapi({ description: "SHA-256 of its own public key" }),
          notAfterMs: AtMs.nullable(),
          added: Deed,
          activated: Deed,
          retired: Deed,
          trustedBy: z.int().openapi({ description: "Agents that have said that they trust its root" }),
          certificates: z.int().openapi({ description: "Agents that came last with a certificate of it" }),
        }),
      )
      .openapi({ description: "The oldest first" }),
    agents: z.int().openapi({ description: "That are enrolled and not revoked" }),
    behind: z.array(z.string()).openapi({
      description:
        "Some of those that do not trust the newest root, or have no certificate of the active issuer",
    }),
    behindCount: z.int(),
    caPem: z.string().openapi({ description: "The roots to trust" }),
  })
  .openapi("Authority");
export type AuthorityView = z.infer<typeof AuthorityView>;

export const IssuerRequestView = z
  .object({ id: z.string(), requestPem: z.string() })
  .openapi("IssuerRequest");
export const ImportIssuerBody = z
  .strictObject({
    chainPem: z
      .string()
      .max(65_536)
      .openapi({ description: "The signed certificate, then its issuers, the root last" }),
  })
  .openapi("ImportIssuer");

export const ActivateIssuerBody = z
  .strictObject({ force: z.boolean().default(false) })
  .openapi("ActivateIssuer");
export const RetireIssuerBody = z
  .strictObject({ id: z.string().max(64), force: z.boolean().default(false) })
  .openapi("RetireIssuer");

export const ApiTokenBody = z
  .strictObject({
    name: Name,
    role: z.enum(ROLES),
    pipelines: z
      .array(Name)
      .min(1)
      .max(1000)
      .nullable()
      .default(null)
      .openapi({ description: "The role holds for these alone; null: for everything" }),
    groups: z
      .array(GroupName)
      .max(100)
      .default([])
      .openapi({ description: "Groups that it counts among, for access policies" }),
    ttlMs: z
      .int()
      .min(1_000)
      .max(366 * 86_400_000)
      .default(90 * 86_400_000),
  })
  .openapi("CreateApiToken");

export const ApiTokenView = z
  .object({
    name: z.string(),
    role: z.enum(ROLES),
    pipelines: z.array(z.string()).nullable(),
    groups: z.array(z.string()),
    createdBy: z.string(),
    createdAtMs: AtMs,
    expiresAtMs: AtMs,
    lastUsedAtMs: AtMs.nullable().openapi({ description: "To the hour; null: never" }),
    revokedAtMs: AtMs.nullable(),
  })
  .openapi("ApiToken");
export type ApiTokenView = z.infer<typeof ApiTokenView>;

export const NewApiTokenView = ApiTokenView.extend({ token: z.string() }).openapi("NewApiToken");
export type NewApiTokenView = z.infer<typeof NewApiTokenView>;

export const WhoAmIView = z
  .object({
    name: z.string(),
    groups: z.array(z.string()),
    grants: z.array(z.object({ role: z.enum(ROLES), pipelines: z.array(z.string()).nullable() })),
    display: z.string().optional().openapi({ description: "For people to read; nothing is decided by it" }),
  })
  .openapi("WhoAmI");
export type WhoAmIView = z.infer<typeof WhoAmIView>;

export const CanIView = z
  .object({
    right: z.enum(RIGHTS),
    pipeline: z.string().nullable(),
    environment: z.string().nullable(),
    allowed: z.boolean(),
    verdict: z
      .enum(["yes", "no", "with-approval"])
      .openapi({ description: "`with-approval`: once a second person has approved the same request" }),
    because: z.string().openapi({ description: "The role or the rule that decided" }),
  })
  .openapi("CanI");
export type CanIView = z.infer<typeof CanIView>;

export const ApprovalView = z
  .object({
    id: z.string(),
    state: z.enum(["waiting", "approved", "denied", "expired", "used"]),
    requester: z.string(),
    needs: z.array(z.object({ right: z.enum(RIGHTS), over: z.string() })),
    because: z.string().openapi({ description: "The rule that wants a second person" }),
    method: z.string(),
    path: z.string(),
    askedAtMs: AtMs,
    expiresAtMs: AtMs.openapi({ description: "Decided, or once approved used, before that" }),
    decision: z.object({ approved: z.boolean(), by: z.string(), reason: z.string(), atMs: AtMs }).nullable(),
    usedAtMs: AtMs.nullable(),
  })
  .openapi("Approval");
export type ApprovalView = z.infer<typeof ApprovalView>;

export const ApprovalDetail = ApprovalView.extend({
  digest: z.string().openapi({ description: "SHA-256 of the requester, method, path and body" }),
  body: z.string().openapi({ description: "Of the request, as it was sent" }),
}).openapi("ApprovalDetail");
export type ApprovalDetail = z.infer<typeof ApprovalDetail>;

export const DecideApprovalBody = z
  .strictObject({ approve: z.boolean(), reason: z.string().trim().max(500).default("") })
  .openapi("DecideApproval");

export const PoisonView = z
  .object({
    id: z.int(),
    keptAtMs: AtMs,
    source: z
      .enum(POISON_SOURCES)
      .openapi({ description: "The queue that it came over; `gateway`: an agent" }),
    subject: z.string().openapi({ description: "Where it was found" }),
    seq: z.int().nullable().openapi({ description: "Its sequence in the stream where it was found" }),
    from: z.string().openapi({ description: "The agent that sent it or met it; empty when not known" }),
    reason: z.string(),
    bytes: z.int().openapi({ description: "Of the message as it came" }),
  })
  .openapi("Poison");
export type PoisonView = z.infer<typeof PoisonView>;

export const PoisonDetail = PoisonView.extend({
  data: z.string().openapi({ description: "Its beginning, up to 256 KiB, in base64" }),
}).openapi("PoisonDetail");
export type PoisonDetail = z.infer<typeof PoisonDetail>;

export const VersionView = z
  .object({ software: z.string(), protocol: z.object({ major: z.int(), minor: z.int() }) })
  .openapi("Version");

/** A page of a list. `nextCursor` is null on the last one. */
export function pageOf<T extends z.ZodType>(items: T) {
  return z.object({ items: z.array(items), nextCursor: z.string().nullable() });
}
