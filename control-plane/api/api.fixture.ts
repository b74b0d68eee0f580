/** The services behind the API, in memory: real enough to be followed, cancelled and paged. */
import { pino } from "pino";
import type { RunEvent, RunEventBatch } from "../../shared/engine/events.ts";
import { InsituError } from "../../shared/errors.ts";
import type { Kind, PipelineSpec } from "../../shared/model/spec.ts";
import { type Clock, systemClock } from "../../shared/system.ts";
import { ROLES_ALONE } from "../access/access-judge.ts";
import { type ApprovalRecord, ask, digestOfRequest, judge } from "../access/approvals.ts";
import { MemoryLedger } from "../evidence/ledger.fixture.ts";
import type { KeptPoison } from "../poison/ports.ts";
import type { RepeatSeed } from "../runs/ports.ts";
import { tokenAccess } from "./access.ts";
import { createApi } from "./api.ts";
import { type ApiOptions, LOOPBACK_HOSTS } from "./context.ts";
import { MemoryIdempotencyStore } from "./idempotency.ts";
import type { AgentView, LogLine, RunDetail } from "./schemas.ts";
import type { ApiServices, DocumentSet, StoredResource } from "./services.ts";

export const TOKEN = "a-token-of-the-test";
export const DIGEST = `sha256:${"a".repeat(64)}`;

/** Something that others wait for until it is said again that it changed. */
class Changes {
  readonly #waiting = new Set<() => void>();
  notify(): void {
    for (const wake of this.#waiting) wake();
  }
  wait(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = (settle: () => void) => () => {
        this.#waiting.delete(wake);
        signal.removeEventListener("abort", onAbort);
        settle();
      };
      const wake = done(resolve);
      const onAbort = done(() => reject(signal.reason));
      if (signal.aborted) return reject(signal.reason);
      this.#waiting.add(wake);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }
  get waiting(): number {
    return this.#waiting.size;
  }
}

export class FakeServices implements ApiServices {
  readonly resourcesByKind = new Map<Kind, StoredResource[]>();
  readonly details = new Map<string, RunDetail>();
  readonly batches = new Map<string, { seq: number; batch: RunEventBatch }[]>();
  readonly logLines = new Map<string, LogLine[]>();
  readonly agentViews: AgentView[] = [];
  readonly applied: { set: DocumentSet; by: string; dryRun: boolean }[] = [];
  readonly memory = new MemoryLedger();
  readonly ledger = this.memory.desk();
  readonly changes = new Changes();
  /** Sources that are open now: each stream that ends must close its own. */
  openStreams = 0;
  ready = true;
  #started = 0;
  /** Set to make the next start wait. */
  startGate: Promise<void> = Promise.resolve();
  startFails: InsituError | undefined;
  /** What each start with an Idempotency-Key was given. */
  readonly seeds: (RepeatSeed | undefined)[] = [];

  addResource(kind: Kind, name: string, spec: object = { name }): void {
    const list = this.resourcesByKind.get(kind) ?? [];
    const version = kind === "pipeline" ? DIGEST : null;
    const stored = { kind, name, version, revision: list.length + 1, appliedAtMs: 1, appliedBy: "lab" };
    list.push({ ...stored, spec: spec as StoredResource["spec"] });
    this.resourcesByKind.set(kind, list);
  }

  addRun(id: string, over: Partial<RunDetail> = {}): RunDetail {
    const run: RunDetail = {
      id,
      pipeline: "penguins",
      version: DIGEST,
      status: "running",
      reason: "",
      params: {},
      createdBy: "lab",
      createdAtMs: 1,
      finishedAtMs: null,
      counts: {
        pending: 0,
        ready: 0,
        offered: 0,
        running: 0,
        backoff: 0,
        disconnected: 0,
        succeeded: 0,
        failed: 0,
        skipped: 0,
        cancelled: 0,
      },
      steps: [],
      eventSeq: 0,
      ...over,
    };
    this.details.set(id, run);
    this.batches.set(id, []);
    return run;
  }

  emit(runId: string, ...events: RunEvent[]): void {
    const list = this.batches.get(runId) ?? [];
    list.push({ seq: list.length + 1, batch: { v: 1, events } });
    this.batches.set(runId, list);
    const run = this.details.get(runId);
    for (const event of events) if (run && event.kind === "run.finished") run.status = event.status;
    this.changes.notify();
  }

  write(runId: string, line: LogLine): void {
    this.logLines.set(runId, [...(this.logLines.get(runId) ?? []), line]);
    this.changes.notify();
  }

  readonly poisoned = new Map<number, KeptPoison>();
  readonly poison: ApiServices["poison"] = {
    list: async () => [...this.poisoned.values()].map(({ data: _, ...about }) => about),
    get: async (id) => this.#poisonOf(id),
    drop: async (id) => {
      this.#poisonOf(id);
      this.poisoned.delete(id);
    },
  };

  #poisonOf(id: number): KeptPoison {
    const found = this.poisoned.get(id);
    if (!found) throw new InsituError("not-found", `there is no poison message ${id}`);
    return found;
  }

  readonly resources: ApiServices["resources"] = {
    apply: async (set, options) => {
      const broken = set.documents.find((document) => document.text.includes("broken"));
      if (broken !== undefined) {
        const errors = [
          { file: broken.file, line: 3, column: 7, message: "unknown key", hint: "did you mean reads" },
        ];
        throw new InsituError("document.invalid", "1 document is not valid", { details: { errors } });
      }
      await options.allow([]);
      this.applied.push({ set, by: options.by(), dryRun: options.dryRun });
      return [{ kind: "pipeline", name: "penguins", action: "created", version: DIGEST }];
    },
    plan: async () => [this.#plan("penguins")],
    factsOf: ({ owner = null }) => ({ team: owner, environments: [] }),
    planStored: async (pipeline) => this.#plan(pipeline),
    list: (kind) => this.resourcesByKind.get(kind) ?? [],
    get: (kind, name) => this.resourcesByKind.get(kind)?.find((one) => one.name === name),
    versions: () => [{ version: DIGEST, appliedAtMs: 1, appliedBy: "lab" }],
    version: async (digest) => (digest === DIGEST ? ({ name: "penguins" } as PipelineSpec) : undefined),
    remove: async (kind, name) => ({ kind, name, action: "deleted", version: null }),
  };

  readonly runs: ApiServices["runs"] = {
    start: async ({ pipeline, params, by, seed }) => {
      await this.startGate;
      this.seeds.push(seed);
      if (this.startFails) throw this.startFails;
      if (pipeline === "unplaceable")
        throw new InsituError("placement.denied", "step merge cannot be placed");
      if (pipeline === "explodes") throw new Error("a secret of the inside");
      this.#started += 1;
      const {
        steps: _steps,
        eventSeq: _seq,
        ...summary
      } = this.addRun(`run-${this.#started}`, {
        pipeline,
        params,
        createdBy: by,
      });
      return summary;
    },
    resolve: ({ runId, reason }) => this.runs.cancel(runId, { by: "lab", reason }),
    cancel: async (id, { reason }) => {
      const run = this.details.get(id);
      if (run === undefined) throw new InsituError("not-found", `there is no run ${id}`);
      const {
        steps: _steps,
        eventSeq: _seq,
        ...summary
      } = Object.assign(run, { status: "cancelling", reason });
      return summary;
    },
  };

  readonly queries: ApiServices["queries"] = {
    list: ({ limit, pipeline, pipelines }) => ({
      items: [...this.details.values()]
        .filter((run) => pipeline === undefined || run.pipeline === pipeline)
        .filter((run) => pipelines?.includes(run.pipeline) !== false)
        .slice(0, limit),
      nextCursor: null,
    }),
    get: (id) => this.details.get(id),
    follow: (id, afterSeq, signal) => this.#follow(id, afterSeq, signal),
  };

  readonly logs: ApiServices["logs"] = { read: (query) => this.#read(query) };
  readonly fleet: ApiServices["fleet"] = {
    list: () => this.agentViews,
    get: (id) => this.agentViews.find((agent) => agent.id === id),
  };
  readonly revocations: Parameters<ApiServices["agents"]["revoke"]>[0][] = [];
  readonly cordons: Parameters<ApiServices["agents"]["uncordon"]>[0][] = [];
  readonly agents: ApiServices["agents"] = {
    revoke: async (request) => void this.revocations.push(request),
    cordon: async (request) => void this.cordons.push(request),
    uncordon: async (request) => void this.cordons.push(request),
  };
  readonly servers: ApiServices["servers"] = { list: () => [] };
  readonly joinTokens: ApiServices["joinTokens"] = {
    create: async ({ environment, ttlMs }) => ({
      id: "0123456789abcdef",
      token: `insitu-join.${environment}`,
      expiresAtMs: ttlMs,
    }),
    list: async () => [],
    get: async (id) => {
      throw new InsituError("not-found", `there is no join token ${id}`);
    },
    revoke: async (id) => {
      throw new InsituError("not-found", `there is no join token ${id}`);
    },
  };
  readonly joinRequests: ApiServices["joinRequests"] = {
    list: async () => [],
    decide: async ({ name }) => {
      throw new InsituError("not-found", `nobody waits as ${name}`);
    },
  };
  readonly authority: ApiServices["authority"] = new Proxy({} as ApiServices["authority"], {
    get: () => () => {
      throw new InsituError("conflict", "no issuer waits to be activated");
    },
  });
  readonly tokens: ApiServices["tokens"] = {
    create: async ({ by, ttlMs, ...asked }) => {
      const times = { createdAtMs: 1, expiresAtMs: 1 + ttlMs, lastUsedAtMs: null, revokedAtMs: null };
      return { ...asked, ...times, createdBy: by, token: `ins_${asked.name}_secret` };
    },
    list: async () => [],
    revoke: async (name) => {
      throw new InsituError("not-found", `there is no token ${name}`);
    },
  };
  readonly approvalRecords = new Map<string, ApprovalRecord>();
  readonly approvals: ApiServices["approvals"] = {
    ask: async (request) => {
      const key = digestOfRequest(request);
      const id = `approval-${this.approvalRecords.size + 1}`;
      const answer = ask(this.approvalRecords.get(key), request, { nowMs: systemClock.wallMs(), id });
      this.approvalRecords.set(key, answer.record);
      return answer;
    },
    list: async () => [...this.approvalRecords.values()],
    get: async (id) => this.#approval(id)[1],
    decide: async (id, decision, check) => {
      const [key, record] = this.#approval(id);
      check(record);
      const next = judge(record, decision, systemClock.wallMs());
      this.approvalRecords.set(key, next);
      return next;
    },
    giveBack: async ({ id }) => {
      const [key, record] = this.#approval(id);
      this.approvalRecords.set(key, { ...record, usedAtMs: null });
    },
  };
  #approval(id: string): [string, ApprovalRecord] {
    const found = [...this.approvalRecords].find(([, record]) => record.id === id);
    if (found === undefined) throw new InsituError("not-found", `there is no approval ${id}`);
    return found;
  }
  readiness = () => ({ nats: this.ready });

  async *#follow(id: string, afterSeq: number, signal: AbortSignal) {
    this.openStreams += 1;
    try {
      for (let next = afterSeq; ; next++) {
        const batches = this.batches.get(id) ?? [];
        if (next >= batches.length && this.details.get(id)?.status !== "running") return;
        while (next >= batches.length) await this.changes.wait(signal);
        const item = batches[next];
        if (item === undefined) return;
        yield item;
        if (item.batch.events.some((event) => event.kind === "run.finished")) return;
      }
    } finally {
      this.openStreams -= 1;
    }
  }

  async *#read({ runId, step, follow, signal }: Parameters<ApiServices["logs"]["read"]>[0]) {
    this.openStreams += 1;
    try {
      for (let next = 0; ; next++) {
        while (follow && next >= (this.logLines.get(runId)?.length ?? 0)) {
          if (this.details.get(runId)?.status !== "running") return;
          await this.changes.wait(signal);
        }
        const line = this.logLines.get(runId)?.[next];
        if (line === undefined) return;
        if (line.data === "broken") throw new InsituError("store.unavailable", "the log stream is gone");
        if (step === undefined || line.step === step) yield line;
      }
    } finally {
      this.openStreams -= 1;
    }
  }

  #plan(pipeline: string) {
    return { pipeline, version: DIGEST, policyVersion: "sha256:0", placeable: true, steps: [] };
  }
}

export function logLine(seq: number, data = "hello\n", step = "summarise"): LogLine {
  const encoded = data === "broken" ? data : Buffer.from(data).toString("base64");
  return { step, attempt: 1, epoch: 1, seq, atMs: 1, stream: "stdout", data: encoded, droppedBytes: 0 };
}

/** An API over fakes, with a token, and the means to stop it. */
export function testApi(over: Partial<ApiOptions> = {}) {
  const services = new FakeServices();
  const stopping = new AbortController();
  const clock: Clock = over.clock ?? systemClock;
  const app = createApi(services, {
    access: tokenAccess(TOKEN),
    judge: ROLES_ALONE,
    log: pino({ level: "silent" }),
    clock,
    idempotency: new MemoryIdempotencyStore(clock),
    allowedHosts: LOOPBACK_HOSTS,
    stopping: stopping.signal,
    ...over,
  });
  const call = (path: string, init: RequestInit & { json?: unknown } = {}) => {
    const headers = new Headers(init.headers);
    if (!headers.has("authorization")) headers.set("authorization", `Bearer ${TOKEN}`);
    if (init.json === undefined) return Promise.resolve(app.request(path, { ...init, headers }));
    if (!headers.has("content-type")) headers.set("content-type", "application/json");
    return Promise.resolve(
      app.request(path, { method: "POST", ...init, headers, body: JSON.stringify(init.json) }),
    );
  };
  return { app, services, stopping, call };
}
