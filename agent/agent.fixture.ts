/** Offers, journals and directories for the agent's tests. */
import { generateKeyPairSync, sign } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import type { StepSpec } from "../shared/model/spec.ts";
import { systemClock } from "../shared/system.ts";
import { type LeaseKey, OFFER_PURPOSE, type Offer, type ReportPayload } from "../shared/wire/attempt.ts";
import { outcome, stepSpec } from "../test/support/specs.ts";
import { Network } from "./network/network.ts";

export const MiB = 1024 * 1024;
export const LIMITS = { logSpoolMaxBytes: 64 * MiB, outboxMaxBytes: 64 * MiB, clock: systemClock };
/** Straight out: for tests in which there is no proxy. */
export const openNetwork = new Network({ clock: systemClock, siteCaPem: "" });
export const quiet = pino({ level: "silent" });

export interface TestDirectory extends Disposable {
  readonly path: string;
}

export function testDirectory(): TestDirectory {
  const path = mkdtempSync(join(tmpdir(), "insitu-agent-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

export function leaseKey(change: Partial<LeaseKey> = {}): LeaseKey {
  return { runId: "run-1", stepId: "fit", attempt: 1, epoch: 1, ...change };
}

export function offerOf(change: Partial<Offer> & { step?: StepSpec } = {}): Offer {
  const lease = change.lease ?? leaseKey();
  return {
    v: 1,
    lease,
    environment: "dream",
    pipeline: "penguins",
    version: `sha256:${"a".repeat(64)}`,
    step: stepSpec(lease.stepId),
    params: {},
    inputs: {},
    files: {},
    datasets: [],
    policyVersion: `sha256:${"b".repeat(64)}`,
    issuedAtMs: 0,
    expiresAtMs: Number.MAX_SAFE_INTEGER,
    traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ...change,
  };
}

export const started = (lease: LeaseKey): ReportPayload => ({ kind: "started", lease, atMs: 1 });
export const finished = (lease: LeaseKey) => ({ kind: "finished" as const, lease, outcome: outcome() });

/** Signs as the control plane does. */
export function offerSigner() {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  return {
    publicKeyPem: Buffer.from(publicKey.export({ type: "spki", format: "pem" })),
    sign: (payload: Uint8Array, purpose: string = OFFER_PURPOSE) =>
      sign(null, Buffer.concat([Buffer.from(`${purpose}\0`), payload]), privateKey).toString("base64"),
  };
}

/** Resolves once the condition holds; asked again whenever `changed` is called. */
export class Until {
  #waiting: { holds: () => boolean; resolve: () => void }[] = [];
  readonly changed = (): void => {
    this.#waiting = this.#waiting.filter(({ holds, resolve }) => {
      if (!holds()) return true;
      resolve();
      return false;
    });
  };
  holds(holds: () => boolean): Promise<void> {
    if (holds()) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ holds, resolve }));
  }
}
