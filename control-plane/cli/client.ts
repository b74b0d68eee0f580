/** The API as functions. Types come from the server's own schemas and are gone at run time. */
import type { Readable } from "node:stream";
import { buffer, text } from "node:stream/consumers";
import { InsituError } from "../../shared/errors.ts";
import type { Kind, ParamValue, PipelineSpec } from "../../shared/model/spec.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import type { DeviceSignIn } from "../access/identity-provider.ts";
import type { Right } from "../access/rights.ts";
import type {
  LedgerKeyView,
  LedgerProofView,
  ReconcileFinding,
  ReconcileSummary,
} from "../api/ledger-schemas.ts";
import type {
  AgentView,
  ApiTokenView,
  AppliedChange,
  ApprovalDetail,
  ApprovalView,
  AuthorityView,
  CanIView,
  JoinRequestView,
  JoinTokenView,
  LogLine,
  NewApiTokenView,
  NewJoinTokenView,
  PlanView,
  PoisonDetail,
  PoisonView,
  RunDetail,
  RunSummary,
  ServerView,
  WhoAmIView,
} from "../api/schemas.ts";
import type { DocumentSet, Page, StoredResource } from "../api/services.ts";
import type { Settings } from "./config.ts";
import { findTarget, type Target, type TargetFlags } from "./context.ts";
import { followEvents, type RunBatch } from "./events.ts";
import { HttpTransport } from "./http.ts";

export type ResourceDetail = StoredResource & {
  versions?: { version: string; appliedAtMs: number; appliedBy: string }[];
};

export const PLURALS: Record<Kind, string> = {
  pipeline: "pipelines",
  dataset: "datasets",
  environment: "environments",
  pool: "pools",
  "access-policy": "access-policies",
};

const PAGE_ITEMS = 500;
/** How often a log that is cut off is taken up again before we give up; each piece that arrives starts anew. */
const LOG_RETRIES_MAX = 8;
const LOG_RETRY_MS = 300;

export class ApiClient {
  readonly #http: HttpTransport;
  readonly #clock: Clock;

  constructor(target: Target, clock: Clock) {
    this.#http = new HttpTransport(target, clock);
    this.#clock = clock;
  }

  get target(): Target {
    return this.#http.target;
  }

  close(): void {
    this.#http.close();
  }

  version(signal: AbortSignal) {
    return this.#get<{ software: string; protocol: { major: number; minor: number } }>("/version", signal);
  }

  async apply(set: DocumentSet, options: { dryRun: boolean; signal: AbortSignal }): Promise<AppliedChange[]> {
    const query = { dry_run: options.dryRun };
    const body = await this.#post<{ changes: AppliedChange[] }>("/v1/apply", set, options.signal, query);
    return body.changes;
  }

  async plan(
    request: DocumentSet | { pipeline: string; version?: string },
    signal: AbortSignal,
  ): Promise<PlanView[]> {
    const call = { method: "POST", path: "/v1/plan", body: request, signal } as const;
    return (await this.#http.json<{ plans: PlanView[] }>(call)).plans;
  }

  listResources(kind: Kind, signal: AbortSignal): Promise<StoredResource[]> {
    return this.#all<StoredResource>(`/v1/${PLURALS[kind]}`, {}, signal);
  }

  getResource(kind: Kind, name: string, signal: AbortSignal): Promise<ResourceDetail> {
    return this.#get(`/v1/${PLURALS[kind]}/${encodeURIComponent(name)}`, signal);
  }

  getVersion(
    name: string,
    digest: string,
    signal: AbortSignal,
  ): Promise<{ version: string; spec: PipelineSpec }> {
    return this.#get(
      `/v1/pipelines/${encodeURIComponent(name)}/versions/${encodeURIComponent(digest)}`,
      signal,
    );
  }

  deleteResource(kind: Kind, name: string, signal: AbortSignal): Promise<AppliedChange> {
    const path = `/v1/${PLURALS[kind]}/${encodeURIComponent(name)}`;
    return this.#http.json({ method: "DELETE", path, signal });
  }

  startRun(
    request: { pipeline: string; version?: string; params: Record<string, ParamValue> },
    signal: AbortSignal,
  ): Promise<RunSummary> {
    return this.#post("/v1/runs", request, signal);
  }

  /** Newest first, `limit` at most. */
  async listRuns(
    query: { pipeline?: string | undefined; status?: string | undefined; limit: number },
    signal: AbortSignal,
  ): Promise<RunSummary[]> {
    return this.#all<RunSummary>("/v1/runs", query, signal, query.limit);
  }

  getRun(id: string, signal: AbortSignal): Promise<RunDetail> {
    return this.#get(`/v1/runs/${encodeURIComponent(id)}`, signal);
  }

  cancelRun(id: string, reason: string, signal: AbortSignal): Promise<RunSummary> {
    return this.#post(`/v1/runs/${encodeURIComponent(id)}/cancel`, { reason }, signal);
  }

  resolveStep(
    id: string,
    step: string,
    request: { as: string; reason: string; evenIfItRan: boolean },
    signal: AbortSignal,
  ): Promise<RunSummary> {
    const path = `/v1/runs/${encodeURIComponent(id)}/steps/${encodeURIComponent(step)}/resolve`;
    return this.#post(path, request, signal);
  }

  /**
   * A full id, the beginning of one that no other run shares, or "last".
   *
   * @throws InsituError `not-found`, or `request.invalid` when several runs begin so
   */
  async resolveRunId(text: string, signal: AbortSignal): Promise<string> {
    if (/^[0-9a-z]{26}$/.test(text)) return text;
    if (text === "last") {
      const [newest] = await this.listRuns({ limit: 1 }, signal);
      if (newest) return newest.id;
      throw new InsituError("not-found", "there is no run yet; start one with `insitu run NAME`");
    }
    const wanted = text.toLowerCase();
    const runs = await this.listRuns({ limit: Number.POSITIVE_INFINITY }, signal);
    const found = runs.filter(({ id }) => id.startsWith(wanted));
    if (found.length === 1) return found[0]!.id;
    if (found.length === 0) {
      throw new InsituError(
        "not-found",
        `no run's id begins with "${text}"; \`insitu runs list\` shows them`,
      );
    }
    const some = found.slice(0, 5).map(({ id }) => id);
    const rest = found.length > some.length ? ", …" : "";
    throw new InsituError(
      "request.invalid",
      `${found.length} runs begin with "${text}": ${some.join(", ")}${rest}`,
    );
  }

  /** Batches after `afterSeq`, then live ones until the run has ended; over broken connections too. */
  events(
    runId: string,
    afterSeq: number,
    options: { signal: AbortSignal; onConnection?: (up: boolean) => void },
  ): AsyncGenerator<RunBatch, void> {
    return followEvents(this.#http, runId, afterSeq, { ...options, clock: this.#clock });
  }

  /** Each entry once, in order, taken up again after a connection that was cut. */
  async *logs(
    runId: string,
    query: { step?: string | undefined; attempt?: number | undefined; follow: boolean },
    signal: AbortSignal,
  ): AsyncGenerator<LogLine, void> {
    const seen = new Map<string, number>();
    const path = `/v1/runs/${encodeURIComponent(runId)}/logs`;
    for (let retries = 0; ; retries++) {
      try {
        const { body } = await this.#http.open({ method: "GET", path, query, signal });
        for await (const json of linesOf(body)) {
          const line = JSON.parse(json) as LogLine;
          const key = `${line.step}/${line.attempt}`;
          if (line.seq <= (seen.get(key) ?? 0)) continue;
          seen.set(key, line.seq);
          retries = 0;
          yield line;
        }
        return;
      } catch (thrown) {
        signal.throwIfAborted();
        if (thrown instanceof InsituError && !thrown.retryable) throw thrown;
        if (retries >= LOG_RETRIES_MAX) {
          const message = `the logs broke off and are not complete: ${InsituError.from(thrown).message}`;
          throw new InsituError("unreachable", message, { cause: thrown });
        }
        await this.#clock.sleep(LOG_RETRY_MS * (retries + 1), signal);
      }
    }
  }

  listAgents(signal: AbortSignal): Promise<AgentView[]> {
    return this.#all<AgentView>("/v1/agents", {}, signal);
  }

  async listServers(signal: AbortSignal): Promise<ServerView[]> {
    return (await this.#get<{ items: ServerView[] }>("/v1/servers", signal)).items;
  }

  async listPoison(signal: AbortSignal): Promise<PoisonView[]> {
    return (await this.#get<{ items: PoisonView[] }>("/v1/poison", signal)).items;
  }

  getPoison(id: number, signal: AbortSignal): Promise<PoisonDetail> {
    return this.#get(`/v1/poison/${id}`, signal);
  }

  async dropPoison(id: number, signal: AbortSignal): Promise<void> {
    const { body } = await this.#http.open({ method: "DELETE", path: `/v1/poison/${id}`, signal });
    body.resume();
  }

  ledgerKey(signal: AbortSignal): Promise<LedgerKeyView> {
    return this.#get("/v1/ledger/key", signal);
  }

  /** Of all leaves that there are now. */
  async ledgerCheckpoint(signal: AbortSignal): Promise<string> {
    const call = { method: "GET", path: "/v1/ledger/checkpoint", query: { upToDate: true }, signal } as const;
    return await text((await this.#http.withRetries(call)).body);
  }

  /** `path`: of a tile or of leaves, as C2SP tlog-tiles has it, from `tile/` on. */
  async ledgerTile(path: string, signal: AbortSignal): Promise<Uint8Array> {
    const { body } = await this.#http.withRetries({ method: "GET", path: `/v1/ledger/${path}`, signal });
    return await buffer(body);
  }

  ledgerProof(runId: string, step: string, signal: AbortSignal): Promise<LedgerProofView> {
    return this.#get(`/v1/ledger/proofs/${encodeURIComponent(runId)}/${encodeURIComponent(step)}`, signal);
  }

  /** Findings as they come; then what was looked at. @throws unreachable when the answer broke off */
  async *reconcileLedger(signal: AbortSignal): AsyncGenerator<ReconcileFinding, ReconcileSummary> {
    const { body } = await this.#http.open({ method: "GET", path: "/v1/ledger/reconciliation", signal });
    for await (const line of linesOf(body)) {
      const { finding, summary } = JSON.parse(line) as {
        finding?: ReconcileFinding;
        summary?: ReconcileSummary;
      };
      if (summary) return summary;
      if (finding) yield finding;
    }
    throw new InsituError(
      "unreachable",
      "the comparison broke off before its end; see the log of the server",
    );
  }

  getAgent(id: string, signal: AbortSignal): Promise<AgentView> {
    return this.#get(agentPath(id), signal);
  }

  revokeAgent(id: string, reason: string, signal: AbortSignal): Promise<AgentView> {
    return this.#post(`${agentPath(id)}/revoke`, { reason }, signal);
  }

  cordonAgent(id: string, body: { reason: string }, signal: AbortSignal): Promise<AgentView> {
    return this.#post(`${agentPath(id)}/cordon`, body, signal);
  }

  drainAgent(
    id: string,
    body: { reason: string; withinMs?: number; once: boolean },
    signal: AbortSignal,
  ): Promise<AgentView> {
    return this.#post(`${agentPath(id)}/drain`, body, signal);
  }

  uncordonAgent(id: string, signal: AbortSignal): Promise<AgentView> {
    return this.#post(`${agentPath(id)}/uncordon`, {}, signal);
  }

  async listJoinRequests(signal: AbortSignal): Promise<JoinRequestView[]> {
    return (await this.#get<{ items: JoinRequestView[] }>("/v1/join-requests", signal)).items;
  }

  async decideJoinRequest(
    { environment, name, fingerprint }: Pick<JoinRequestView, "environment" | "name" | "fingerprint">,
    approve: boolean,
    signal: AbortSignal,
  ): Promise<void> {
    const path = `/v1/join-requests/${encodeURIComponent(environment)}/${encodeURIComponent(name)}`;
    const body = { approve, fingerprint };
    const answer = await this.#http.open({ method: "POST", path, body, signal });
    answer.body.resume();
  }

  /** Not repeated on a broken connection: the answer is a secret, and a lost one is a token too many. */
  createJoinToken(
    request: { environment: string; ttlMs: number; uses: number; approval: boolean },
    signal: AbortSignal,
  ): Promise<NewJoinTokenView> {
    return this.#http.json({ method: "POST", path: "/v1/join-tokens", body: request, signal });
  }

  listJoinTokens(signal: AbortSignal): Promise<JoinTokenView[]> {
    return this.#all<JoinTokenView>("/v1/join-tokens", {}, signal);
  }

  getJoinToken(id: string, signal: AbortSignal): Promise<JoinTokenView> {
    return this.#get(`/v1/join-tokens/${encodeURIComponent(id)}`, signal);
  }

  revokeJoinToken(id: string, signal: AbortSignal): Promise<JoinTokenView> {
    return this.#http.json({ method: "DELETE", path: `/v1/join-tokens/${encodeURIComponent(id)}`, signal });
  }

  authority(signal: AbortSignal): Promise<AuthorityView> {
    return this.#get("/v1/authority", signal);
  }

  /** Not repeated on a broken connection: whether it was done, `authority` says. */
  changeAuthority(
    change: "rotate" | "activate" | "retire" | "import",
    body: object | undefined,
    signal: AbortSignal,
  ): Promise<AuthorityView> {
    const path = `/v1/authority/${change}`;
    return this.#http.json({ method: "POST", path, ...(body && { body }), signal });
  }

  requestIssuer(signal: AbortSignal): Promise<{ id: string; requestPem: string }> {
    return this.#http.json({ method: "POST", path: "/v1/authority/request", signal });
  }

  /** Not repeated on a broken connection: each makes a code for a person to confirm. */
  beginDevice(signal: AbortSignal): Promise<DeviceSignIn> {
    return this.#http.json({ method: "POST", path: "/auth/device", body: {}, signal });
  }

  /** Nor this: the answer is a secret, and comes once. */
  askDevice(
    deviceCode: string,
    signal: AbortSignal,
  ): Promise<{ token: string; expiresAtMs: number } | { status: "waiting" | "too-fast" }> {
    return this.#http.json({ method: "POST", path: "/auth/device/token", body: { deviceCode }, signal });
  }

  async signOut(signal: AbortSignal): Promise<void> {
    const { body } = await this.#http.open({ method: "POST", path: "/auth/sign-out", body: {}, signal });
    body.resume();
  }

  /** Of a token that this client has not got. */
  whoIs(token: string, signal: AbortSignal): Promise<WhoAmIView> {
    const headers = { authorization: `Bearer ${token}` };
    return this.#http.json({ method: "GET", path: "/v1/access/whoami", headers, signal });
  }

  whoAmI(signal: AbortSignal): Promise<WhoAmIView> {
    return this.#get("/v1/access/whoami", signal);
  }

  canI(
    asked: {
      right: Right;
      pipeline?: string | undefined;
      environment?: string | undefined;
      as_group?: string | undefined;
    },
    signal: AbortSignal,
  ): Promise<CanIView> {
    return this.#http.json({ method: "GET", path: "/v1/access/can-i", query: asked, signal });
  }

  async listApprovals(signal: AbortSignal): Promise<ApprovalView[]> {
    return (await this.#get<{ items: ApprovalView[] }>("/v1/approvals", signal)).items;
  }

  getApproval(id: string, signal: AbortSignal): Promise<ApprovalDetail> {
    return this.#get(`/v1/approvals/${encodeURIComponent(id)}`, signal);
  }

  decideApproval(
    id: string,
    decision: { approve: boolean; reason: string },
    signal: AbortSignal,
  ): Promise<ApprovalDetail> {
    const path = `/v1/approvals/${encodeURIComponent(id)}/decision`;
    return this.#http.json({ method: "POST", path, body: decision, signal });
  }

  async listTokens(signal: AbortSignal): Promise<ApiTokenView[]> {
    return (await this.#get<{ items: ApiTokenView[] }>("/v1/tokens", signal)).items;
  }

  /** Not repeated on a broken connection, like that of a join token. */
  createToken(
    request: { name: string; role: string; pipelines: string[] | null; groups: string[]; ttlMs: number },
    signal: AbortSignal,
  ): Promise<NewApiTokenView> {
    return this.#http.json({ method: "POST", path: "/v1/tokens", body: request, signal });
  }

  revokeToken(name: string, signal: AbortSignal): Promise<ApiTokenView> {
    return this.#http.json({ method: "DELETE", path: `/v1/tokens/${encodeURIComponent(name)}`, signal });
  }

  #get<T>(path: string, signal: AbortSignal): Promise<T> {
    return this.#http.json<T>({ method: "GET", path, signal });
  }

  #post<T>(
    path: string,
    body: unknown,
    signal: AbortSignal,
    query: Record<string, boolean> = {},
  ): Promise<T> {
    const headers = { "idempotency-key": newSecret(16) };
    return this.#http.json<T>({ method: "POST", path, body, query, headers, signal });
  }

  async #all<T>(
    path: string,
    query: Record<string, string | number | undefined>,
    signal: AbortSignal,
    limit = Number.POSITIVE_INFINITY,
  ): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | undefined;
    do {
      const wanted = Math.min(PAGE_ITEMS, limit - items.length);
      const page: Page<T> = await this.#http.json({
        method: "GET",
        path,
        query: { ...query, limit: wanted, cursor },
        signal,
      });
      items.push(...page.items);
      cursor = page.nextCursor ?? undefined;
    } while (cursor !== undefined && items.length < limit);
    return items;
  }
}

function agentPath(id: string): string {
  const [environment = "", name = ""] = id.split("/");
  return `/v1/agents/${encodeURIComponent(environment)}/${encodeURIComponent(name)}`;
}

export function connectApi(flags: TargetFlags, settings: Settings, clock: Clock): ApiClient {
  return new ApiClient(findTarget(flags, settings), clock);
}

/** Lines without their ends. A body that is cut throws; what stood after its last newline is not yielded then. */
async function* linesOf(body: Readable): AsyncGenerator<string, void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of body) {
    const lines = (rest + decoder.decode(chunk as Uint8Array, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line !== "") yield line;
  }
  if (rest !== "") yield rest;
}
