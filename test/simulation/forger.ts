/**
 * Whoever can write to NATS, and wants attempts to end: it puts reports into the inbox that no agent has made. It knows
 * what is in the streams, the public keys and every signature that was ever kept; no private key is known to it.
 */

import type { StoredBatch } from "../../control-plane/runs/ports.ts";
import type { InboxItem } from "../../control-plane/shards/ports.ts";
import type { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import { type ReportSignature, reportBytes } from "../../shared/wire/report-signature.ts";
import { outcome } from "../support/specs.ts";
import type { World } from "./world.ts";

/** No site counts so far: see `World.marks`. */
const MARK = 1_000_000_000;

export class Forger {
  readonly #world: World;
  readonly #forged = new Set<InboxItem>();
  /** By agent: a report with its signature, out of the histories. */
  readonly #captured = new Map<string, { payload: string; signed: ReportSignature }[]>();
  #count = 0;

  constructor(world: World) {
    this.#world = world;
  }

  made(item: InboxItem): boolean {
    return this.#forged.has(item);
  }

  /** Reads along. */
  saw({ runId, events }: StoredBatch): void {
    for (const event of events) {
      if (event.kind !== "attempt.finished" || event.signed === undefined) continue;
      const { agent, step: stepId, attempt, epoch, signed } = event;
      const lease = { runId, stepId, attempt, epoch };
      const payload = Buffer.from(
        reportBytes({ kind: "finished", lease, outcome: event.outcome }),
      ).toString();
      this.#captured.set(agent, [...(this.#captured.get(agent) ?? []), { payload, signed }]);
    }
  }

  /** One report about something that is under way at an agent that signs. */
  act(): void {
    const { chance, witness, records } = this.#world;
    const targets = witness.granted.flatMap(({ lease, environment, holder }) => {
      const agents = holder === null ? this.#world.agentsOf(environment) : [holder];
      return agents.flatMap((agent) => {
        // An agent that has not announced a key may be one of a release that does not sign: see ADR 32.
        const [keyId] = records.keysOf(agent);
        return keyId === undefined ? [] : [{ agent, keyId, lease, started: holder !== null }];
      });
    });
    if (targets.length === 0) return;
    const { agent, keyId, lease, started } = chance.pick(targets);
    const report = started ? this.#outcome(lease) : ({ kind: "started", lease, atMs: 0 } as const);
    const captured = this.#captured.get(agent) ?? [];
    if (captured.length > 0 && chance.happens(0.5)) {
      const { payload, signed } = chance.pick(captured);
      return this.#put(
        { agent, report, signed: { ...signed, payload } },
        "with a signature of another lease",
      );
    }
    const others = this.#world.identities.filter(({ peer }) => peer.id !== agent);
    if (others.length > 0 && chance.happens(0.5)) {
      // The other agent is hostile too.
      const { signer, peer } = chance.pick(others);
      const { signature, keyId } = signer.sign(reportBytes(report));
      const signed = { keyId, signature: signature.toString("base64") };
      return this.#put({ agent, report, signed }, `signed by ${peer.id}`);
    }
    const signature = Buffer.alloc(64, chance.int(0, 255)).toString("base64");
    this.#put({ agent, report, signed: { keyId, signature } }, "with a made-up signature");
  }

  #outcome(lease: LeaseKey): ReportPayload {
    return { kind: "finished", lease, outcome: outcome({ logBytes: MARK + this.#count }) };
  }

  #put(item: InboxItem, how: string): void {
    const { stepId, epoch } = item.report.lease;
    this.#count += 1;
    this.#forged.add(item);
    this.#world.note(
      () => `somebody puts "${item.report.kind}" of ${stepId}/${epoch} into the inbox, ${how}`,
    );
    this.#world.inbox.put(item, `forged-${this.#count}`);
  }
}
