/**
 * Brings everything about a run to the replica that decides for it: commands by asking its owner, reports
 * through the durable inbox, renewals of leases by a message that may get lost.
 */
import { z } from "zod";
import { DECISIONS } from "../../shared/engine/disconnection.ts";
import { InsituError, InvariantError } from "../../shared/errors.ts";
import { ParamValue } from "../../shared/model/spec.ts";
import type { Clock } from "../../shared/system.ts";
import { LeaseKey, type ReportPayload } from "../../shared/wire/attempt.ts";
import type { ReportSignature } from "../../shared/wire/report-signature.ts";
import { shardOf } from "../../shared/wire/subjects.ts";
import type { HeartbeatVerdict, LeaseKeeper, ReportSink, ReportVerdict } from "../gateway/ports.ts";
import type { Inbox, InboxItem, PeerBus, ShardView } from "../shards/ports.ts";
import type { RepeatSeed } from "./ports.ts";
import { isElsewhere } from "./run-actor.ts";
import type { RunService, StepResolution } from "./run-service.ts";

/** A shard moves within a few seconds; a command waits that long for its owner. */
const COMMAND_WITHIN_MS = 12_000;
const ANSWER_WITHIN_MS = 4_000;
const ASK_AGAIN_MS = 150;

/** What a person or a program asks of a run. */
export const RunCommand = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("create"),
    runId: z.string(),
    version: z.string(),
    params: z.record(z.string(), ParamValue),
    by: z.string(),
  }),
  z.object({ kind: z.literal("cancel"), runId: z.string(), by: z.string(), reason: z.string() }),
  z.object({
    kind: z.literal("resolve"),
    runId: z.string(),
    step: z.string(),
    decision: z.enum(DECISIONS),
    evenIfItRan: z.boolean(),
    by: z.string(),
    reason: z.string(),
  }),
]);
export type RunCommand = z.infer<typeof RunCommand>;

const Verdict = z.object({
  renewed: z.array(LeaseKey),
  superseded: z.array(LeaseKey),
  cancels: z.array(z.object({ lease: LeaseKey, reason: z.string() })),
});

export const PeerMessage = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("renew"), from: z.string(), agent: z.string(), held: z.array(LeaseKey) }),
  z.object({ kind: z.literal("verdict"), agent: z.string(), verdict: Verdict }),
  z.object({ kind: z.literal("stop"), agent: z.string(), lease: LeaseKey, reason: z.string() }),
]);
export type PeerMessage = z.infer<typeof PeerMessage>;

export interface RunRouterOptions {
  runs: RunService;
  shards: ShardView;
  bus: PeerBus;
  inbox: Inbox;
  clock: Clock;
  /** Whether the agent signed it, as far as it signs. @throws report.unsigned, report.forged; else not now */
  verify(item: InboxItem): Promise<void>;
  /** A report from the inbox that will never be accepted. It leaves the inbox when this resolves. */
  refused(item: InboxItem, why: { code: string; message: string }): Promise<void>;
  /** To an agent that is connected here. False when it is not. */
  tell(agent: string, verdict: HeartbeatVerdict): boolean;
  stop(agent: string, lease: LeaseKey, reason: string): boolean;
}

export class RunRouter implements ReportSink, LeaseKeeper {
  readonly #options: RunRouterOptions;

  constructor(options: RunRouterOptions) {
    this.#options = options;
  }

  /** With a seed, the same run each time: the repeat of a request whose answer was lost finds what it made. */
  async create(
    request: { version: string; params: Record<string, ParamValue>; by: string },
    seed?: RepeatSeed,
  ): Promise<{ runId: string; seq: number }> {
    const { runs } = this.#options;
    const runId = seed
      ? await runs.seededRunId(request.version, seed)
      : runs.newRunId(await runs.shardFor(request.version));
    return { runId, ...(await this.command({ kind: "create", runId, ...request })) };
  }

  cancel(runId: string, by: string, reason: string): Promise<{ seq: number }> {
    return this.command({ kind: "cancel", runId, by, reason });
  }

  resolve(request: StepResolution): Promise<{ seq: number }> {
    return this.command({ kind: "resolve", ...request });
  }

  /** Resolves with the sequence of what follows. @throws what the owner throws; unavailable when there is none */
  async command(command: RunCommand): Promise<{ seq: number }> {
    const { clock, shards } = this.#options;
    const untilMs = clock.monotonicMs() + COMMAND_WITHIN_MS;
    for (;;) {
      const owner = shards.ownerOf(shardOf(command.runId));
      try {
        if (owner === shards.replicaId) return await this.#inTime(command, this.perform(command), untilMs);
        if (owner !== undefined) return await this.#ask(owner, command);
      } catch (thrown) {
        const err = InsituError.from(thrown);
        if (!isElsewhere(err) && err.code !== "unavailable") throw err;
      }
      if (clock.monotonicMs() > untilMs) {
        throw new InsituError(
          "unavailable",
          `the replica that decides for run ${command.runId} did not answer in time: ${command.kind} may have happened or happen yet. See "insitu servers list", and try again with the same Idempotency-Key`,
          { retryable: true, details: { runId: command.runId } },
        );
      }
      await clock.sleep(ASK_AGAIN_MS);
    }
  }

  /** The owner waits for a store that is away; who asked is told in time, and what was asked may still happen. */
  async #inTime<T>({ kind, runId }: RunCommand, work: Promise<T>, untilMs: number): Promise<T> {
    const { clock } = this.#options;
    const done = new AbortController();
    const late = clock.sleep(Math.max(0, untilMs - clock.monotonicMs()), done.signal).then((): never => {
      throw new InsituError(
        "store.unavailable",
        `the store did not confirm ${kind} of run ${runId} in time: it may have happened or happen yet. Is NATS up, in a cluster more than half of its servers? Look at the run, or repeat the request with the same Idempotency-Key`,
        { retryable: true, details: { runId } },
      );
    });
    try {
      return await Promise.race([work, late]);
    } finally {
      done.abort();
      late.catch(() => undefined); // nobody waits for it any more
      work.catch(() => undefined); // likewise; its own part has dealt with it
    }
  }

  /** Here, for whoever asks. @throws shard.elsewhere */
  async perform(command: RunCommand): Promise<{ seq: number }> {
    const { runs } = this.#options;
    switch (command.kind) {
      case "create": {
        const { seq } = await runs.create(command);
        return { seq };
      }
      case "cancel":
        return await runs.cancel(command.runId, command.by, command.reason);
      default:
        return await runs.resolve(command);
    }
  }

  async accept(agent: string, report: ReportPayload, signed?: ReportSignature): Promise<ReportVerdict> {
    const { runs, inbox } = this.#options;
    const { runId } = report.lease;
    try {
      if (runs.owns(runId)) return await runs.accept(agent, report, signed);
    } catch (err) {
      // Of a run that was set aside it is kept there too, and tried again: sent again by the agent for ever, it would
      // hold up every later report of it.
      if (!isElsewhere(err) && !isStuck(err)) throw err;
    }
    await inbox.put(shardOf(runId), { agent, report, ...(signed && { signed }) });
    return { accepted: true };
  }

  /** A report that another replica took in. False: it is not for us, and stays there for the owner. */
  async acceptFromInbox(item: InboxItem): Promise<boolean> {
    const { runs, verify, refused } = this.#options;
    const { agent, report, signed } = item;
    if (!runs.owns(report.lease.runId)) return false;
    try {
      await verify(item);
      const verdict = await runs.accept(agent, report, signed);
      if (!verdict.accepted) await refused(item, verdict);
      return true;
    } catch (err) {
      if (isElsewhere(err)) return false;
      if (isForged(err)) {
        await refused(item, err);
        return true;
      }
      throw err;
    }
  }

  /** Renews what is decided here at once; what others decide is passed on, and their answer follows by itself. */
  heartbeat(agent: string, held: LeaseKey[]): HeartbeatVerdict {
    const { runs, shards, bus } = this.#options;
    const ours = held.filter(({ runId }) => runs.owns(runId));
    if (ours.length < held.length && shards.size > 1) {
      const others = held.filter(({ runId }) => !runs.owns(runId));
      const message: PeerMessage = { kind: "renew", from: shards.replicaId, agent, held: others };
      bus.broadcast(message);
    }
    return runs.heartbeat(agent, ours);
  }

  /** Tells an agent to stop an attempt, wherever it is connected. */
  stop(agent: string, lease: LeaseKey, reason: string): boolean {
    if (this.#options.stop(agent, lease, reason)) return true;
    const message: PeerMessage = { kind: "stop", agent, lease, reason };
    if (this.#options.shards.size > 1) this.#options.bus.broadcast(message);
    return false;
  }

  received(message: PeerMessage): void {
    const { runs, bus, tell, stop } = this.#options;
    switch (message.kind) {
      case "renew": {
        const ours = message.held.filter(({ runId }) => runs.owns(runId));
        if (ours.length === 0) return;
        const verdict = runs.heartbeat(message.agent, ours);
        const answer: PeerMessage = { kind: "verdict", agent: message.agent, verdict };
        bus.send(message.from, answer);
        return;
      }
      case "verdict":
        tell(message.agent, message.verdict);
        return;
      case "stop":
        stop(message.agent, message.lease, message.reason);
        return;
      default:
        return; // of a newer release
    }
  }

  async #ask(owner: string, command: RunCommand): Promise<{ seq: number }> {
    const answer = await this.#options.bus.request(owner, command, ANSWER_WITHIN_MS);
    return Answer.parse(answer);
  }
}

function isForged(err: unknown): err is InsituError {
  return err instanceof InsituError && (err.code === "report.unsigned" || err.code === "report.forged");
}

/** The run cannot be decided by this release, whatever is tried. */
function isStuck(err: unknown): boolean {
  return (
    err instanceof InvariantError || (err instanceof InsituError && err.code === "internal" && !err.retryable)
  );
}

const Answer = z.object({ seq: z.int() });
