/** Bundles for tests: a ledger with a key of its own, agents with certificates of a real authority, and the leaves of their steps. */
import { generateKeyPairSync, type KeyPairKeyObjectResult, sign } from "node:crypto";
import { digestOf } from "../../../shared/model/canonical.ts";
import type { DatasetSpec, EnvironmentSpec, PipelineSpec } from "../../../shared/model/spec.ts";
import { formatCheckpoint } from "../../../shared/provenance/checkpoint.ts";
import { toBase64 } from "../../../shared/provenance/encoding.ts";
import {
  entryBytes,
  type LedgerDecision,
  type LedgerEntry,
} from "../../../shared/provenance/ledger-entry.ts";
import { leafHash, readerOf, rootHash, subtreesOf } from "../../../shared/provenance/merkle.ts";
import {
  formatNote,
  formatVerifierKey,
  NOTE_SIGNATURE,
  signNote,
} from "../../../shared/provenance/signed-note.ts";
import type { SignedReceipt } from "../../../shared/provenance/signed-receipt.ts";
import type { LeaseKey, Offer, Outcome } from "../../../shared/wire/attempt.ts";
import { Authority, offerOf, type Sealer } from "../../../test/support/receipts.ts";
import { outcome, pipelineSpec, stepSpec } from "../../../test/support/specs.ts";
import { DEFAULT_POLICIES } from "../../placement/default-policies.ts";
import { type BundleRecord, formatRecord } from "./records.ts";
import { type BundleTrust, BundleVerifier, type VerifiedBundle } from "./verify-bundle.ts";

const ORIGIN = "insitu.dev/insitu.test/0123456789abcdef";
const POLICY = digestOf({ schema: DEFAULT_POLICIES.schema, rules: DEFAULT_POLICIES.rules });

export const patients: DatasetSpec = {
  name: "patients",
  owner: "clinic",
  classification: "confidential",
  residency: ["EU"],
  environments: ["dream"],
};
export const dream: EnvironmentSpec = { name: "dream", jurisdiction: "DE", labels: {} };
export const study: PipelineSpec = pipelineSpec("study", [stepSpec("fit", { reads: ["patients"] })]);

/** What one attempt of the step `fit` is to have happened like. */
export interface Happened {
  runId: string;
  epoch?: number;
  atMs: number;
  outcome?: Partial<Outcome>;
  /** In place of what the agent seals. */
  receipt?: (receipt: SignedReceipt, offer: Offer) => SignedReceipt | undefined;
  agent?: Sealer;
}

export class SampleLedger {
  readonly entries: LedgerEntry[] = [];
  readonly authority: Authority;
  readonly agent: Sealer;
  /** Near enough to now for the certificates that tests make. */
  readonly startMs: number;
  #keys: KeyPairKeyObjectResult = generateKeyPairSync("ed25519");
  #seq = { RUNS: 0, RESOURCES: 0 };

  private constructor(authority: Authority, agent: Sealer, startMs: number) {
    this.authority = authority;
    this.agent = agent;
    this.startMs = startMs;
  }

  /** With the dataset, its environment, and one run of the study, which has read it. */
  static async open(startMs: number): Promise<SampleLedger> {
    const authority = await Authority.open();
    const ledger = new SampleLedger(authority, await authority.agent("dream", "a1"), startMs);
    ledger.applied(startMs);
    ledger.run({ runId: "run-1", atMs: startMs + 60_000 });
    return ledger;
  }

  applied(atMs: number): void {
    const changes = [
      { kind: "environment" as const, name: "dream", digest: digestOf(dream) },
      { kind: "dataset" as const, name: "patients", digest: digestOf(patients) },
      { kind: "pipeline" as const, name: "study", digest: digestOf(study) },
    ];
    this.message("RESOURCES", [{ atMs, decision: { kind: "resources.applied", by: "anna", changes } }]);
  }

  message(stream: "RUNS" | "RESOURCES", said: ({ receipt: SignedReceipt } | Said)[]): void {
    this.#seq[stream] += 1;
    const seq = this.#seq[stream];
    for (const [part, one] of said.entries()) {
      const source = { stream, seq, part };
      this.entries.push(
        "receipt" in one
          ? { v: 1, kind: "receipt", source, receipt: one.receipt }
          : { v: 1, kind: "decision", source, atMs: one.atMs, decision: one.decision },
      );
    }
  }

  /** A run of which the step is placed, taken, and ended with what the agent seals. */
  run(happened: Happened): void {
    const { runId, atMs } = happened;
    const version = digestOf(study);
    this.message("RUNS", [
      { atMs, decision: { kind: "run.started", runId, pipeline: "study", version, by: "anna" } },
    ]);
    this.attempt(happened);
  }

  attempt({ runId, epoch = 1, atMs, outcome: change, receipt: instead, agent = this.agent }: Happened): void {
    const attempt: LeaseKey = { runId, stepId: "fit", attempt: 1, epoch };
    const offer = this.offer(attempt);
    const { version, policyVersion } = offer;
    const place = {
      pipeline: "study",
      version,
      environment: "dream",
      policyVersion,
      reads: ["patients"],
      writes: [],
    };
    this.message("RUNS", [{ atMs, decision: { kind: "attempt.placed", attempt, ...place } }]);
    const taken = { kind: "attempt.taken", attempt, agent: "dream/a1" } as const;
    this.message("RUNS", [{ atMs: atMs + 10, decision: taken }]);
    const end = outcome({ startedAtMs: atMs + 20, finishedAtMs: atMs + 900, ...change });
    const sealed = agent.seal(offer, end);
    const receipt = instead ? instead(sealed, offer) : sealed;
    const ended: Said = {
      atMs: atMs + 1_000,
      decision: {
        kind: "attempt.ended",
        attempt,
        agent: "dream/a1",
        status: end.status,
        counted: true,
        receipt: receipt !== undefined,
      },
    };
    this.message("RUNS", receipt ? [{ receipt }, ended] : [ended]);
  }

  offer(lease: LeaseKey): Offer {
    return offerOf({
      lease,
      pipeline: "study",
      version: digestOf(study),
      policyVersion: POLICY,
      step: study.steps[0]!,
      datasets: [{ name: "patients", classification: "confidential" }],
    });
  }

  get #noteKey() {
    const spki = this.#keys.publicKey.export({ type: "spki", format: "der" });
    return { name: ORIGIN, type: NOTE_SIGNATURE.ed25519, publicKey: new Uint8Array(spki.subarray(-32)) };
  }

  get verifierKey(): string {
    return formatVerifierKey(this.#noteKey);
  }

  /** Over leaves as they are given: what whoever has the key could sign. */
  checkpoint(leaves: readonly Uint8Array[] = this.leaves()): string {
    const { length: size } = leaves;
    const root = rootHash(readerOf(leaves.map((leaf) => leafHash(leaf))), size);
    const text = formatCheckpoint({ origin: ORIGIN, size, root });
    return formatNote(text, [
      signNote(text, this.#noteKey, (message) => sign(null, message, this.#keys.privateKey)),
    ]);
  }

  leaves(): Uint8Array[] {
    return this.entries.map((entry) => entryBytes(entry));
  }

  /** Of the first leaves: the complete subtrees that cover them. */
  hashes(leaves: number): { level: number; hash: string }[] {
    const read = readerOf(this.leaves().map((leaf) => leafHash(leaf)));
    return subtreesOf(0, leaves).map(({ level, index }) => ({ level, hash: toBase64(read(level, index)) }));
  }

  /** Signed over the entries as they are, whatever they are. */
  records(): BundleRecord[] {
    const records: BundleRecord[] = [
      {
        kind: "bundle",
        v: 1,
        dataset: "patients",
        fromMs: null,
        toMs: null,
        madeAtMs: this.startMs,
        software: "insitu 0.1.0",
      },
      {
        kind: "ledger",
        checkpoint: this.checkpoint(),
        verifierKey: this.verifierKey,
        trustDomain: this.authority.trust.trustDomain,
        rootsPem: [...this.authority.trust.rootsPem],
      },
      ...this.leaves().map((leaf): BundleRecord => ({ kind: "leaf", leaf: toBase64(leaf) })),
      { kind: "pipeline", version: digestOf(study), spec: study },
      { kind: "dataset", spec: patients },
      { kind: "environment", spec: dream },
      {
        kind: "policy",
        version: POLICY,
        schema: DEFAULT_POLICIES.schema,
        rules: { ...DEFAULT_POLICIES.rules },
      },
    ];
    return [...records, { kind: "end", records: records.length }];
  }

  get trust(): BundleTrust {
    return { rootsPem: this.authority.trust.rootsPem, verifierKey: this.verifierKey, kept: [] };
  }
}

type Said = { atMs: number; decision: LedgerDecision };

export function verified(records: readonly BundleRecord[], trust: BundleTrust): VerifiedBundle {
  const verifier = new BundleVerifier(trust);
  for (const record of records) verifier.line(formatRecord(record).trimEnd());
  return verifier.finish();
}

/** `check: detail` of what failed. */
export function failures({ findings }: VerifiedBundle): string[] {
  return findings.kept
    .filter(({ level }) => level === "failed")
    .map(({ check, detail }) => `${check}: ${detail}`);
}
