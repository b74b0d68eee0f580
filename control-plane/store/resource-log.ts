/**
 * Resources as a fold over the stream `RESOURCES`: one message an apply, so that a directory of documents is
 * taken whole or not at all. Pipeline bodies lie beside it in the bucket of versions, by digest.
 */
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import { z } from "zod";
import { compile, type Plan } from "../../shared/engine/plan.ts";
import { InsituError } from "../../shared/errors.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import { Digest, Name } from "../../shared/model/names.ts";
import {
  AccessPolicySpec,
  DatasetSpec,
  EnvironmentSpec,
  KINDS,
  type Kind,
  PipelineSpec,
  PoolSpec,
} from "../../shared/model/spec.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import { PipelineEnvelopes } from "../../shared/provenance/signed-pipeline.ts";
import type { Clock } from "../../shared/system.ts";
import { BUCKETS, STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { StoredResource } from "../api/services.ts";
import { type PoisonSink, reasonOf } from "../poison/ports.ts";
import type { PipelineVersion, ResourceChange, ResourceJournal } from "../resources/resource-journal.ts";
import type { PlanSource } from "../runs/ports.ts";
import { type KvStore, openKv } from "./kv.ts";
import { publish } from "./publish.ts";
import { lastSeqOf, type StreamMessage, StreamTail } from "./stream-reader.ts";
import { whenReady } from "./when-ready.ts";

const head = { name: Name };
const Change = z.union([
  z.strictObject({ ...head, action: z.literal("deleted"), kind: z.enum(KINDS) }),
  z.strictObject({
    ...head,
    action: z.literal("set"),
    kind: z.literal("pipeline"),
    version: Digest,
    signatures: PipelineEnvelopes.optional(),
  }),
  z.strictObject({ ...head, action: z.literal("set"), kind: z.literal("dataset"), spec: DatasetSpec }),
  z.strictObject({
    ...head,
    action: z.literal("set"),
    kind: z.literal("environment"),
    spec: EnvironmentSpec,
  }),
  z.strictObject({ ...head, action: z.literal("set"), kind: z.literal("pool"), spec: PoolSpec }),
  z.strictObject({
    ...head,
    action: z.literal("set"),
    kind: z.literal("access-policy"),
    spec: AccessPolicySpec,
  }),
]);
const Applied = z.strictObject({ v: z.literal(1), atMs: z.int(), by: z.string(), changes: z.array(Change) });

/** Undefined for what is no apply. */
export function parseApply(data: Uint8Array): z.infer<typeof Applied> | undefined {
  try {
    return Applied.parse(JSON.parse(Buffer.from(data).toString("utf8")));
  } catch {
    return undefined; // not JSON, or not of this form
  }
}

/** Somebody waits for it. */
const PATIENCE_MS = 10_000;
const LOAD_RETRY_MS = 500;

export class ResourceLog implements PlanSource, ResourceJournal {
  readonly #connection: NatsConnection;
  readonly #versions: KvStore<PipelineSpec>;
  readonly #tail: StreamTail;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #poison: PoisonSink;
  readonly #stop = new AbortController();
  readonly #resources = new Map<string, StoredResource>();
  /** Also of pipelines that were deleted since: their runs stay, and somebody's they are. */
  readonly #lastPipelines = new Map<string, PipelineSpec>();
  readonly #history = new Map<string, PipelineVersion[]>();
  /** By version, as it was last applied. */
  readonly #signatures = new Map<string, readonly Envelope[]>();
  readonly #plans = new Map<string, Promise<Plan>>();
  readonly #onChange = new Set<() => void>();
  #waiters: { seq: number; resolve(): void }[] = [];
  #queue: Promise<void> = Promise.resolve();
  #seq = 0;

  private constructor(
    connection: NatsConnection,
    versions: KvStore<PipelineSpec>,
    { clock, log, poison }: { clock: Clock; log: Logger; poison: PoisonSink },
  ) {
    this.#connection = connection;
    this.#versions = versions;
    this.#clock = clock;
    this.#log = log;
    this.#poison = poison;
    const onMessage = (message: StreamMessage): void => {
      this.#queue = this.#queue.then(() => this.#fold(message));
    };
    this.#tail = new StreamTail({ connection, stream: STREAMS.resources, fromSeq: 1, clock, log, onMessage });
  }

  /** Opens the log and reads it to its present end. */
  static async open(options: {
    connection: NatsConnection;
    clock: Clock;
    log: Logger;
    replicas: number;
    poison: PoisonSink;
  }): Promise<ResourceLog> {
    const { connection, clock, log, replicas, poison } = options;
    const versions = await openKv(connection, {
      clock,
      bucket: BUCKETS.versions,
      schema: PipelineSpec,
      replicas,
      poison,
    });
    const opened = new ResourceLog(connection, versions, { clock, log, poison });
    const lastSeq = await whenReady({ connection, clock }, () => lastSeqOf(connection, STREAMS.resources));
    opened.#tail.start();
    await opened.#waitFor(lastSeq);
    return opened;
  }

  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    await this.#tail.close();
    await this.#queue;
  }

  /** Sequence of the last apply that is folded in: what a change is planned against. */
  get seq(): number {
    return this.#seq;
  }

  get(kind: Kind, name: string): StoredResource | undefined {
    return this.#resources.get(`${kind}/${name}`);
  }

  /** Sorted by name. */
  list(kind: Kind): StoredResource[] {
    const found = [...this.#resources.values()].filter((resource) => resource.kind === kind);
    return found.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  all(): ReadonlyMap<string, StoredResource> {
    return this.#resources;
  }

  /** Newest first. */
  versionsOf(pipeline: string): PipelineVersion[] {
    return [...(this.#history.get(pipeline) ?? [])].reverse();
  }

  /** A run goes on with those of its own version, also when a later one is signed by nobody. */
  signaturesOf(version: string): readonly Envelope[] {
    return this.#signatures.get(version) ?? [];
  }

  pipelinesEver(): ReadonlyMap<string, PipelineSpec> {
    return this.#lastPipelines;
  }

  onChange(listener: () => void): void {
    this.#onChange.add(listener);
  }

  /** The plan of a version. @throws not-found, internal when the stored body does not have its digest */
  load(version: string): Promise<Plan> {
    let plan = this.#plans.get(version);
    if (!plan) {
      plan = this.#loadPlan(version);
      this.#plans.set(version, plan);
      plan.catch(() => this.#plans.delete(version)); // so that a store that was away is asked again
    }
    return plan;
  }

  async #loadPlan(version: string): Promise<Plan> {
    const found = await this.#versions.get(keyOf(version));
    if (!found) throw new InsituError("not-found", `there is no pipeline version ${version}`);
    const digest = digestOf(found.value);
    if (digest !== version) {
      throw new InsituError(
        "internal",
        `the stored body of pipeline version ${version} has the digest ${digest}`,
      );
    }
    return compile(found.value);
  }

  /** Keeps a pipeline's body; safe to repeat, and harmless when no apply follows. */
  async keepVersion(version: string, spec: PipelineSpec): Promise<void> {
    try {
      await this.#versions.create(keyOf(version), spec);
    } catch (err) {
      if (InsituError.from(err).code !== "conflict") throw err;
    }
  }

  /**
   * Appends one apply if nothing was applied since `expectedSeq`. Resolves when reads see it.
   *
   * @throws conflict when something was: plan again
   */
  async append(
    changes: ResourceChange[],
    options: { by: string; atMs: number; expectedSeq: number; id: string },
  ) {
    const { by, atMs, expectedSeq, id } = options;
    const world = { connection: this.#connection, clock: this.#clock, patienceMs: PATIENCE_MS };
    const published = await publish(world, {
      what: "apply",
      stream: STREAMS.resources,
      subject: subjects.resources,
      payload: JSON.stringify({ v: 1, atMs, by, changes }),
      messageId: id,
      expected: { ofStream: expectedSeq },
    });
    if (published.kind === "stored") return await this.#waitFor(published.seq);
    await this.#waitFor(await lastSeqOf(this.#connection, STREAMS.resources));
    throw new InsituError("conflict", "somebody else applied at the same time", { retryable: true });
  }

  #waitFor(seq: number): Promise<void> {
    if (this.#seq >= seq) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push({ seq, resolve }));
  }

  async #fold(message: StreamMessage): Promise<void> {
    try {
      const applied = Applied.parse(JSON.parse(Buffer.from(message.data).toString("utf8")));
      // Everything that can fail comes before the first change, and no reader runs between the changes: an apply
      // is seen whole or not at all.
      const bodies = await this.#bodiesOf(applied.changes);
      for (const change of applied.changes) this.#apply(change, bodies, applied, message.seq);
    } catch (err) {
      // Closed while it waited: nobody reads here any more.
      if (this.#stop.signal.aborted) return;
      this.#log.error({ err, seq: message.seq }, "an apply in the stream is not understood");
      const { subject, seq, data } = message;
      await this.#poison.put({ source: "resources", subject, seq, from: "", reason: reasonOf(err), data });
    }
    this.#seq = message.seq;
    for (const waiter of this.#waiters) if (waiter.seq <= this.#seq) waiter.resolve();
    this.#waiters = this.#waiters.filter((waiter) => waiter.seq > this.#seq);
    for (const listener of this.#onChange) listener();
  }

  /** The pipelines of an apply, by version. Waits for a store that is away: to go on would lose the apply. */
  async #bodiesOf(changes: readonly ResourceChange[]): Promise<Map<string, PipelineSpec>> {
    const bodies = new Map<string, PipelineSpec>();
    for (const change of changes) {
      if (change.kind !== "pipeline" || change.action !== "set") continue;
      while (!bodies.has(change.version)) {
        try {
          bodies.set(change.version, (await this.load(change.version)).spec);
        } catch (thrown) {
          const err = InsituError.from(thrown);
          if (!err.retryable) throw err;
          this.#log.warn({ err, version: change.version }, "pipeline version not read yet");
          await this.#clock.sleep(LOAD_RETRY_MS, this.#stop.signal);
        }
      }
    }
    return bodies;
  }

  #apply(
    change: ResourceChange,
    bodies: ReadonlyMap<string, PipelineSpec>,
    applied: { atMs: number; by: string },
    revision: number,
  ): void {
    const { kind, name } = change;
    if (change.action === "deleted") {
      this.#resources.delete(`${kind}/${name}`);
      return;
    }
    const version =
      change.kind === "pipeline"
        ? change.version
        : change.kind === "access-policy"
          ? digestOf(change.spec)
          : null;
    const spec = change.kind === "pipeline" ? bodies.get(change.version)! : change.spec;
    const { atMs: appliedAtMs, by: appliedBy } = applied;
    const signatures = change.kind === "pipeline" ? change.signatures : undefined;
    const signed = signatures === undefined ? {} : { signatures };
    const stored = { kind, name, version, spec, ...signed, revision, appliedAtMs, appliedBy };
    this.#resources.set(`${kind}/${name}`, stored);
    if (change.kind !== "pipeline" || version === null) return;
    this.#signatures.set(version, signatures ?? []);
    this.#lastPipelines.set(name, bodies.get(version)!);
    const history = this.#history.get(name) ?? [];
    this.#history.set(name, [
      ...history.filter((old) => old.version !== version),
      { version, appliedAtMs, appliedBy },
    ]);
  }
}

function keyOf(version: string): string {
  return version.slice("sha256:".length);
}
