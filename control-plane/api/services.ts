/** What the HTTP API needs of the rest of the control plane. Implemented in `main.ts` and the services. */

import type { Decision } from "../../shared/engine/disconnection.ts";
import type { RunEventBatch } from "../../shared/engine/events.ts";
import type { Kind, ParamValue, PipelineSpec, Resource } from "../../shared/model/spec.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import type { PipelineFacts } from "../access/access-decision.ts";
import type { ApprovalRecord, ApprovalRequest } from "../access/approvals.ts";
import type { Role } from "../access/rights.ts";
import type { PoisonDesk } from "../poison/ports.ts";
import type { RepeatSeed } from "../runs/ports.ts";
import type { LedgerKeyView, LedgerProofView, ReconcileFinding, ReconcileSummary } from "./ledger-schemas.ts";
import type {
  AgentView,
  ApiTokenView,
  AppliedChange,
  AuthorityView,
  JoinRequestView,
  JoinTokenView,
  LogLine,
  NewApiTokenView,
  NewJoinTokenView,
  PlanView,
  RunDetail,
  RunSummary,
  ServerView,
} from "./schemas.ts";

/** Documents as a person wrote them, with the text files that their steps name. */
export interface DocumentSet {
  documents: { file: string; text: string }[];
  /** Content by path, as resolved by the loader: directory of the document joined with the step's path. */
  attachments: Record<string, string>;
}

export interface Page<T> {
  items: T[];
  nextCursor: string | null;
}

export interface StoredResource {
  kind: Kind;
  name: string;
  /** Digest of a pipeline or an access policy; null for other kinds. */
  version: string | null;
  spec: Resource["spec"];
  /** Who has signed the pipeline: passed on to the sites, which check it. Missing: nobody. */
  signatures?: Envelope[];
  /** Sequence of the apply that made it so; grows. */
  revision: number;
  appliedAtMs: number;
  appliedBy: string;
}

/** What an apply wants to set, changed or not. */
export interface AskedChange {
  kind: Kind;
  name: string;
  /** Of a pipeline that was deleted: as it was last. */
  before: Resource["spec"] | undefined;
  after: Resource["spec"];
}

export interface ApplyOptions {
  /** Asked when the change is written: a second person may have joined the first by then. */
  by(): string;
  dryRun: boolean;
  /** Throws when the caller may not. Called before anything is said of what would change, and again when it changes. */
  allow(asked: readonly AskedChange[]): Promise<void>;
}

export interface ResourceService {
  /** All or nothing. Throws `document.invalid` with `details.errors: DocumentError[]`, `placement.denied` likewise. */
  apply(set: DocumentSet, options: ApplyOptions): Promise<AppliedChange[]>;
  /** What access policies can ask of a pipeline, by this spec and where it may run now. */
  factsOf(spec: PipelineSpec): PipelineFacts;
  /** Validates and explains every pipeline in the set, against it and what is stored. Does not throw on unplaceable. */
  plan(set: DocumentSet): Promise<PlanView[]>;
  planStored(pipeline: string, version?: string): Promise<PlanView>;
  list(kind: Kind): StoredResource[];
  get(kind: Kind, name: string): StoredResource | undefined;
  versions(pipeline: string): { version: string; appliedAtMs: number; appliedBy: string }[];
  version(digest: string): Promise<PipelineSpec | undefined>;
  remove(kind: Kind, name: string, by: string): Promise<AppliedChange>;
}

export interface RunCommands {
  /** Throws `not-found`, `request.invalid` (parameters), `placement.denied`. Resolves when durable and visible to reads. */
  start(request: {
    pipeline: string;
    version?: string;
    params: Record<string, ParamValue>;
    by: string;
    /** The same seed is the same run, however often it is started. */
    seed?: RepeatSeed;
  }): Promise<RunSummary>;
  /** Idempotent while the run goes on. Throws `not-found`, `run.terminal`. */
  cancel(runId: string, request: { by: string; reason: string }): Promise<RunSummary>;
  /** What became of a step whose agent is cut off. Throws `not-found`, `run.terminal`, `step.not-resolvable`. */
  resolve(request: {
    runId: string;
    step: string;
    decision: Decision;
    evenIfItRan: boolean;
    by: string;
    reason: string;
  }): Promise<RunSummary>;
}

export interface RunQueries {
  /** `pipelines`: only runs of these; nothing of the answer, its cursor neither, depends on others. */
  list(query: {
    pipeline?: string;
    pipelines?: readonly string[];
    status?: string;
    limit: number;
    cursor?: string;
  }): Page<RunSummary>;
  get(runId: string): RunDetail | undefined;
  /** Batches after `afterSeq` (0: from the start), then live ones; ends after the batch with `run.finished`. */
  follow(
    runId: string,
    afterSeq: number,
    signal: AbortSignal,
  ): AsyncIterable<{ seq: number; batch: RunEventBatch }>;
}

export interface LogQueries {
  read(query: {
    runId: string;
    step?: string;
    attempt?: number;
    follow: boolean;
    signal: AbortSignal;
  }): AsyncIterable<LogLine>;
}

export interface FleetQueries {
  list(): AgentView[];
  get(id: string): AgentView | undefined;
}

export interface AgentCommands {
  /** Puts the agent out for good; idempotent. Throws `not-found`. */
  revoke(request: { environment: string; name: string; by: string; reason: string }): Promise<void>;
  /**
   * The agent takes no new work. `drain`: and is to hold nothing any more; after `withinMs`, what still runs there is
   * ended, and what is started `once` as well. The last request counts. Throws `not-found`; `conflict` when it was revoked.
   */
  cordon(request: {
    environment: string;
    name: string;
    by: string;
    reason: string;
    drain: { withinMs?: number | undefined; once: boolean } | null;
  }): Promise<void>;
  /** It may take work again. Idempotent. Throws like `cordon`. */
  uncordon(request: { environment: string; name: string; by: string }): Promise<void>;
}

export interface ServerQueries {
  list(): ServerView[];
}

export interface JoinTokens {
  /** `token` is one line that carries endpoint, CA pin, environment and secret. Throws `not-found` for an unknown environment. */
  create(request: {
    environment: string;
    ttlMs: number;
    uses: number;
    /** Whether a person has to approve each agent. */
    approval?: boolean;
    by: string;
  }): Promise<NewJoinTokenView>;
  /** Those of the last 31 days, also when they are used up, expired or revoked. In no order. */
  list(): Promise<JoinTokenView[]>;
  /** Throws `not-found`. */
  get(id: string): Promise<JoinTokenView>;
  /** Lets nobody in from then on; agents that came with it stay. Idempotent. Throws `not-found`. */
  revoke(id: string, by: string): Promise<JoinTokenView>;
}

export interface JoinRequests {
  /** Agents that wait for approval, by id. */
  list(): Promise<JoinRequestView[]>;
  /** Idempotent; what is decided last counts. Throws `not-found`, and `conflict` when another key waits. */
  decide(request: {
    environment: string;
    name: string;
    fingerprint: string;
    approved: boolean;
    by: string;
  }): Promise<void>;
}

export interface AuthorityCommands {
  show(): AuthorityView;
  /** Adds a root that everybody comes to trust. Throws `conflict` while another one waits to be activated. */
  rotate(by: string): Promise<AuthorityView>;
  /** For a certificate request that an operator signs with a root of their own. */
  request(): Promise<{ id: string; requestPem: string }>;
  /** Adds the issuer whose certificate and root come back. Throws `request.invalid`, which says what is wrong with the chain. */
  import(request: { chainPem: string; by: string }): Promise<AuthorityView>;
  /** Certificates of agents come from the added one from now on. Throws `conflict` while agents do not trust it. */
  activate(request: { force: boolean; by: string }): Promise<AuthorityView>;
  /** Nobody trusts it any more, and its key is destroyed. Idempotent. Throws `conflict` while agents need it, `not-found`. */
  retire(request: { id: string; force: boolean; by: string }): Promise<AuthorityView>;
}

export interface ApiTokens {
  /** `token` is the secret, shown once. Throws `conflict` for a name that is or was taken. */
  create(request: {
    name: string;
    role: Role;
    pipelines: string[] | null;
    /** What access policies can speak of. */
    groups: string[];
    ttlMs: number;
    by: string;
  }): Promise<NewApiTokenView>;
  /** By name. */
  list(): Promise<ApiTokenView[]>;
  /** Idempotent. Throws `not-found`. */
  revoke(name: string, by: string): Promise<ApiTokenView>;
}

export interface Approvals {
  /**
   * Of the same request there is one at a time. `take`: it is approved, and this has used the approval up.
   *
   * @throws InsituError `request.too-large`, `limit.exceeded`, `store.unavailable`
   */
  ask(request: ApprovalRequest): Promise<{ verdict: "take" | "waiting" | "denied"; record: ApprovalRecord }>;
  /** The oldest first, also those that are decided, used or expired, for 30 days. */
  list(): Promise<ApprovalRecord[]>;
  /** Throws `not-found`. */
  get(id: string): Promise<ApprovalRecord>;
  /** `check` throws when the caller may not, for the record as it is when it changes. Throws `not-found`, `conflict`. */
  decide(
    id: string,
    decision: { approved: boolean; by: string; reason: string },
    check: (record: ApprovalRecord) => void,
  ): Promise<ApprovalRecord>;
  /** Makes one that was taken good again: its request had no effect. */
  giveBack(record: ApprovalRecord): Promise<void>;
}

export interface LedgerQueries {
  key(): Promise<LedgerKeyView>;
  /** The note. `upToDate`: of all leaves that there are at the call. @throws not-found, unavailable */
  checkpoint(upToDate: boolean, signal: AbortSignal): Promise<string>;
  /** Of a path such as `tile/0/x001/067` or `tile/entries/000.p/7`. @throws not-found */
  tile(path: string): Promise<{ bytes: Uint8Array; full: boolean }>;
  /** All leaves about the attempts of a step, each with its proof. @throws not-found */
  prove(runId: string, step: string, signal: AbortSignal): Promise<LedgerProofView>;
  /** What it finds, as it finds it; reads everything. */
  reconcile(signal: AbortSignal): AsyncGenerator<ReconcileFinding, ReconcileSummary>;
}

export interface ApiServices {
  resources: ResourceService;
  runs: RunCommands;
  queries: RunQueries;
  logs: LogQueries;
  fleet: FleetQueries;
  agents: AgentCommands;
  servers: ServerQueries;
  joinTokens: JoinTokens;
  joinRequests: JoinRequests;
  authority: AuthorityCommands;
  tokens: ApiTokens;
  approvals: Approvals;
  poison: PoisonDesk;
  ledger: LedgerQueries;
  /** Name → ok, for /readyz. */
  readiness(): Record<string, boolean>;
}
