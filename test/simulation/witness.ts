/**
 * Watches the stream and the sites, and knows what must never happen. It keeps books of its own, so that a fault in
 * the engine's fold does not hide itself.
 */

import type { StoredBatch } from "../../control-plane/runs/ports.ts";
import type { InboxItem } from "../../control-plane/shards/ports.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import type { LeaseKey, Outcome, ReportPayload } from "../../shared/wire/attempt.ts";
import type { ReportSignature } from "../../shared/wire/report-signature.ts";
import { shardOf } from "../../shared/wire/subjects.ts";
import type { Pipeline, Scenario } from "./scenario.ts";

export interface Violation {
  invariant: string;
  message: string;
}

type Status =
  | "open"
  | "offered"
  | "running"
  | "disconnected"
  | "succeeded"
  | "failed"
  | "skipped"
  | "cancelled";

interface StepBook {
  status: Status;
  attempt: number;
  epoch: number;
  environment: string;
  agent: string | null;
  /** `epoch:agent` of every outcome in the stream. */
  outcomes: Set<string>;
  /** Epochs with an outcome that counts, or with an operator's word that it succeeded. */
  committed: Set<number>;
  /** How often an operator said that it may be started again. */
  allowedAgain: number;
  disconnectedAtMs: number;
}

interface RunBook {
  pipeline: Pipeline;
  /** The process that decides for the run, and the epoch of its shard under which it does. */
  writer: string;
  shardEpoch: number;
  status: string;
  steps: Map<string, StepBook>;
  /** Since a cancel stands in the history: whether steps were open then that nobody held. */
  cancelled: { leftSteps: boolean } | undefined;
}

/** Whether what stands in a history is what the agent signed; always, of one that does not sign. */
type SignatureCheck = (agent: string, report: ReportPayload, signed: ReportSignature | undefined) => boolean;

const OPEN = new Set<Status>(["open", "offered", "running", "disconnected"]);
const PLACED = new Set<Status>(["offered", "running", "disconnected"]);

export class Witness {
  violation: Violation | undefined;
  readonly runs = new Map<string, RunBook>();
  /** How often each `once` step, and each grant by each life of an agent, was started. */
  readonly #starts = new Map<string, number>();
  /** What the sites themselves recorded, by `lease@agent`. */
  readonly #outcomes = new Map<string, Outcome[]>();
  /** What agents had in their journals: `kind lease@agent`. */
  readonly #reported = new Set<string>();
  /** Who wrote under which epoch of which shard. */
  readonly #owners = new Map<string, string>();
  readonly #scenario: Scenario;

  readonly #isInInbox: (agent: string, report: ReportPayload) => boolean;
  readonly #isSigned: SignatureCheck;

  constructor(
    scenario: Scenario,
    isInInbox: (agent: string, report: ReportPayload) => boolean,
    isSigned: SignatureCheck,
  ) {
    this.#scenario = scenario;
    this.#isInInbox = isInInbox;
    this.#isSigned = isSigned;
  }

  fail(invariant: string, message: string): void {
    this.violation ??= { invariant, message };
  }

  /** Steps that are cut off, with how many milliseconds ago by the replicas' clocks they were found to be. */
  get disconnected(): { runId: string; step: string; sinceMs: number }[] {
    return [...this.runs].flatMap(([runId, run]) =>
      [...run.steps].flatMap(([step, book]) =>
        run.status === "running" && book.status === "disconnected"
          ? [{ runId, step, sinceMs: book.disconnectedAtMs }]
          : [],
      ),
    );
  }

  /** Grants that nobody has ended: whose they are, and who holds them (null: nobody has said so yet). */
  get granted(): { lease: LeaseKey; environment: string; holder: string | null }[] {
    return [...this.runs].flatMap(([runId, run]) =>
      [...run.steps].flatMap(([stepId, { status, attempt, epoch, environment, agent }]) =>
        run.status === "running" && PLACED.has(status)
          ? [{ lease: { runId, stepId, attempt, epoch }, environment, holder: agent }]
          : [],
      ),
    );
  }

  get unfinished(): string[] {
    return [...this.runs].filter(([, run]) => run.status === "running").map(([runId]) => runId);
  }

  appended({ runId, events }: StoredBatch, writer: string): void {
    for (const event of events) this.#event(runId, event, writer);
    this.#checkPools();
  }

  /**
   * `life`: which process of the agent. One that starts again remembers only what it still holds, and may carry a
   * grant a second time when the queue did not hear its acknowledgement; at most one outcome of the two counts.
   */
  started(lease: LeaseKey, agent: string, life: number): void {
    const { runId, stepId, epoch } = lease;
    const run = this.runs.get(runId);
    const step = run?.steps.get(stepId);
    const environment = environmentOf(agent);
    if (!run || !step || step.epoch < epoch) {
      return this.fail("nothing starts that was not offered", `${nameOf(lease)} at ${agent}`);
    }
    if (!run.pipeline.allowed.get(stepId)!.includes(environment)) {
      this.fail("steps run only where they may", `${nameOf(lease)} started in ${environment}`);
    }
    const key = `${keyOf(lease)}@${agent}/${life}`;
    const count = (this.#starts.get(key) ?? 0) + 1;
    this.#starts.set(key, count);
    if (count > 1) this.fail("an agent starts a grant once", `${nameOf(lease)} started twice at ${agent}`);
    const { plan } = run.pipeline;
    if (plan.steps[plan.indexOf.get(stepId)!]!.once !== true) return;
    const starts = (this.#starts.get(`${runId}/${stepId}`) ?? 0) + 1;
    this.#starts.set(`${runId}/${stepId}`, starts);
    if (starts > 1 + step.allowedAgain)
      this.fail("a once step is started once", `${nameOf(lease)} by ${agent}, start ${starts}`);
  }

  /** The agent has written a report into its journal. */
  reported({ kind, lease }: ReportPayload, agent: string): void {
    this.#reported.add(`${kind} ${keyOf(lease)}@${agent}`);
  }

  ended(lease: LeaseKey, agent: string, outcome: Outcome): void {
    const key = `${keyOf(lease)}@${agent}`;
    this.#outcomes.set(key, [...(this.#outcomes.get(key) ?? []), outcome]);
  }

  /** The agent was told that its report is durable, and forgets it. */
  acknowledged(agent: string, report: ReportPayload): void {
    if (!this.isKept(agent, report) && !this.#isInInbox(agent, report))
      this.fail("what is acknowledged is kept", `${report.kind} of ${nameOf(report.lease)} by ${agent}`);
  }

  removedFromInbox({ agent, report }: InboxItem): void {
    if (!this.isKept(agent, report))
      this.fail("what leaves the inbox is kept", `${report.kind} of ${nameOf(report.lease)} by ${agent}`);
  }

  /** The report is in its run's history, or has become meaningless there. */
  isKept(agent: string, report: ReportPayload): boolean {
    const { runId, stepId, epoch } = report.lease;
    const step = this.runs.get(runId)?.steps.get(stepId);
    if (report.kind === "finished") return step?.outcomes.has(`${epoch}:${agent}`) ?? false;
    return step !== undefined && (step.status !== "offered" || step.epoch !== epoch);
  }

  /** Somebody was told that the run is cancelled. */
  cancelAnswered(runId: string): void {
    const run = this.runs.get(runId);
    if (run?.status === "running" && !run.cancelled)
      this.fail("a cancel that was answered stands in the history", runId);
  }

  rejected(agent: string, report: ReportPayload, code: string): void {
    this.fail(
      "no report of a granted attempt is refused",
      `${report.kind} of ${nameOf(report.lease)} by ${agent}: ${code}`,
    );
  }

  #event(runId: string, event: RunEvent, writer: string): void {
    const { fail } = { fail: (invariant: string, why: string) => this.fail(invariant, `${why} (${runId})`) };
    if (event.kind === "run.created") {
      const pipeline = this.#scenario.pipelines.find(({ version }) => version === event.version)!;
      if (this.runs.has(runId)) return fail("a run is created once", "created again");
      const steps = new Map(pipeline.plan.steps.map(({ id }) => [id, emptyBook()] as const));
      this.runs.set(runId, {
        pipeline,
        writer,
        shardEpoch: 0,
        status: "running",
        steps,
        cancelled: undefined,
      });
      return;
    }
    const run = this.runs.get(runId);
    if (!run) return fail("a run is created before anything else", event.kind);
    if (run.status !== "running" && event.kind !== "attempt.fenced") {
      return fail("an ended run does not change", `${event.kind} after ${run.status}`);
    }
    if (event.kind === "run.taken-over") {
      if (event.shardEpoch <= run.shardEpoch)
        fail("a run is taken over under a higher epoch", `${event.shardEpoch} after ${run.shardEpoch}`);
      this.#claim(runId, event.shardEpoch, writer);
      run.writer = writer;
      run.shardEpoch = event.shardEpoch;
      return;
    }
    if (event.kind !== "attempt.fenced" && run.writer !== writer)
      fail(
        "one replica writes in a shard's epoch",
        `${event.kind} by ${writer}, taken over by ${run.writer}`,
      );
    if (event.kind === "run.finished") {
      const open = [...run.steps].filter(([, step]) => OPEN.has(step.status));
      if (open.length > 0) fail("a run ends after its steps", `${open.map(([id]) => id).join(", ")} open`);
      if (run.cancelled?.leftSteps && event.status !== "cancelled")
        fail("a run that is cancelled ends as cancelled", event.status);
      run.status = event.status;
      return;
    }
    if (event.kind === "run.cancel-requested") {
      const leftSteps = [...run.steps.values()].some(({ status }) => status === "open");
      run.cancelled ??= { leftSteps };
      return;
    }
    if (!("step" in event)) return;
    const step = run.steps.get(event.step)!;
    const about = `${event.kind} of ${event.step}`;
    if (event.kind !== "attempt.fenced" && !OPEN.has(step.status)) {
      return fail("an ended step does not change", `${about} after ${step.status}`);
    }
    switch (event.kind) {
      case "attempt.offered":
        return this.#offered(run, step, event, fail);
      case "attempt.started":
        this.#checkHolder(step, event, fail);
        if (step.status !== "offered")
          fail("only what is offered starts", `${about}, which is ${step.status}`);
        if (!this.#reported.has(`started ${keyOf({ runId, stepId: event.step, ...event })}@${event.agent}`))
          fail("a start is what the site reported", `${about} by ${event.agent}`);
        step.status = "running";
        step.agent = event.agent;
        return;
      case "attempt.finished":
        this.#checkHolder(step, event, fail);
        this.#outcome(step, runId, event, event.outcome, fail);
        if (step.status !== "running" || step.agent !== event.agent)
          fail("an outcome comes from the holder", `${about} by ${event.agent}, held by ${step.agent}`);
        if (step.committed.has(event.epoch)) fail("one outcome an epoch", `${about}, epoch ${event.epoch}`);
        step.committed.add(event.epoch);
        step.status = "open";
        return;
      case "attempt.disconnected":
        this.#checkHolder(step, event, fail);
        if (step.status !== "running") fail("only what runs is cut off", `${about}, which is ${step.status}`);
        step.status = "disconnected";
        step.disconnectedAtMs = event.atMs;
        return;
      case "attempt.reconnected":
        this.#checkHolder(step, event, fail);
        if (step.status !== "disconnected" || step.agent !== event.agent)
          fail("only the holder comes back", `${about} by ${event.agent}, held by ${step.agent}`);
        step.status = "running";
        return;
      case "attempt.resolved":
        if (step.status !== "disconnected")
          fail("only a cut-off attempt is resolved", `${about}, which is ${step.status}`);
        step.status = "open";
        if (event.decision === "reassign") step.allowedAgain += 1;
        if (event.decision === "succeeded") step.committed.add(step.epoch);
        return;
      case "attempt.lost":
        if (event.epoch !== step.epoch) fail("only the current grant is lost", `${about} ${event.epoch}`);
        if (event.outcome) this.#outcome(step, runId, { ...event, agent: event.agent! }, event.outcome, fail);
        step.status = "open";
        return;
      case "attempt.fenced":
        return this.#outcome(step, runId, event, event.outcome, fail);
      case "step.succeeded":
        if (!step.committed.has(step.epoch)) fail("success rests on an outcome", about);
        step.status = "succeeded";
        return;
      case "step.failed":
        step.status = "failed";
        return;
      case "step.skipped":
        step.status = "skipped";
        return;
      case "step.cancelled":
        step.status = "cancelled";
        return;
      default:
        return;
    }
  }

  #claim(runId: string, shardEpoch: number, writer: string): void {
    const key = `${shardOf(runId)}/${shardEpoch}`;
    const owner = this.#owners.get(key) ?? writer;
    this.#owners.set(key, owner);
    if (owner !== writer)
      this.fail("one replica writes in a shard's epoch", `${key} by ${writer} and ${owner}`);
  }

  #offered(
    run: RunBook,
    step: StepBook,
    event: Extract<RunEvent, { kind: "attempt.offered" }>,
    fail: (invariant: string, why: string) => void,
  ): void {
    if (run.cancelled) fail("a cancelled run offers nothing", event.step);
    if (step.status !== "open") fail("one grant at a time", `${event.step} is ${step.status}`);
    if (event.epoch !== step.epoch + 1)
      fail("epochs grow", `${event.step}: ${event.epoch} after ${step.epoch}`);
    if (event.attempt < step.attempt) fail("attempts grow", `${event.step}: ${event.attempt}`);
    if (!run.pipeline.allowed.get(event.step)!.includes(event.environment))
      fail("steps are offered only where they may run", `${event.step} in ${event.environment}`);
    const { needs } = run.pipeline.plan.steps[run.pipeline.plan.indexOf.get(event.step)!]!;
    const early = needs.filter((need) => run.steps.get(need)!.status !== "succeeded");
    if (early.length > 0) fail("needs come first", `${event.step} before ${early.join(", ")}`);
    step.status = "offered";
    step.attempt = event.attempt;
    step.epoch = event.epoch;
    step.environment = event.environment;
    step.agent = null;
  }

  #checkHolder(
    step: StepBook,
    event: { step: string; epoch: number; agent: string },
    fail: (invariant: string, why: string) => void,
  ): void {
    if (event.epoch !== step.epoch)
      fail("only the current epoch counts", `${event.step}: ${event.epoch}, current ${step.epoch}`);
    if (environmentOf(event.agent) !== step.environment)
      fail("only the granted site counts", `${event.step}: ${event.agent}, granted to ${step.environment}`);
  }

  /** Every outcome in the stream is one that a site recorded, word for word, and stands there once. */
  #outcome(
    step: StepBook,
    runId: string,
    event: {
      step: string;
      attempt: number;
      epoch: number;
      agent: string;
      signed?: ReportSignature | undefined;
    },
    outcome: Outcome,
    fail: (invariant: string, why: string) => void,
  ): void {
    const said = `outcome of ${event.step} under epoch ${event.epoch} by ${event.agent}`;
    const lease = { runId, stepId: event.step, attempt: event.attempt, epoch: event.epoch };
    const key = keyOf(lease);
    const recorded = this.#outcomes.get(`${key}@${event.agent}`) ?? [];
    if (!recorded.some(({ logBytes, status }) => logBytes === outcome.logBytes && status === outcome.status))
      fail("an outcome is what the site recorded", said);
    if (!this.#isSigned(event.agent, { kind: "finished", lease, outcome }, event.signed))
      fail("a history holds what its agents have signed", said);
    const mark = `${event.epoch}:${event.agent}`;
    if (step.outcomes.has(mark)) fail("an outcome stands in the stream once", said);
    step.outcomes.add(mark);
  }

  #checkPools(): void {
    for (const [pool, capacity] of this.#scenario.pools) {
      const held: string[] = [];
      for (const [runId, run] of this.runs) {
        for (const spec of run.pipeline.plan.steps) {
          const status = spec.pools.includes(pool) && run.steps.get(spec.id)!.status;
          if (status && PLACED.has(status)) held.push(`${spec.id} of ${runId} (${status})`);
        }
      }
      if (held.length > capacity)
        this.fail(
          "pools are never over capacity",
          `${pool}: ${held.length} of ${capacity} places taken, by ${held.join(", ")}`,
        );
    }
  }
}

export function environmentOf(agent: string): string {
  return agent.slice(0, agent.indexOf("/"));
}

function emptyBook(): StepBook {
  return {
    status: "open",
    attempt: 0,
    epoch: 0,
    environment: "",
    agent: null,
    outcomes: new Set(),
    committed: new Set(),
    allowedAgain: 0,
    disconnectedAtMs: 0,
  };
}

function keyOf({ runId, stepId, epoch }: LeaseKey): string {
  return `${runId}/${stepId}/${epoch}`;
}

function nameOf(lease: LeaseKey): string {
  return `${lease.stepId} under epoch ${lease.epoch} of ${lease.runId}`;
}
