/**
 * Which keys sign the reports of which agents, and whether a report is what its agent signed.
 *
 * Asked twice: where a report comes in, and, when it went through the store since, by whoever decides for its run. The
 * store keeps the keys and is not trusted with them: each is believed for the certificate that vouches for it.
 */
import { type KeyObject, verify, X509Certificate } from "node:crypto";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import { leafHash } from "../../shared/provenance/merkle.ts";
import type { Clock } from "../../shared/system.ts";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import {
  type Batch,
  type BatchPlace,
  type BatchPurpose,
  BatchTree,
  batchAt,
  verifyBatch,
} from "../../shared/wire/batch-signature.ts";
import {
  REPORT_BATCH_PURPOSE,
  type ReportSignature,
  readReportKey,
  reportBytes,
  reportKeyId,
  signedReportKey,
  verifyReport,
} from "../../shared/wire/report-signature.ts";
import type { ChangingPki } from "../access/authority.ts";
import { type AgentRecord, keysOf, type ReportKey } from "../fleet/agent-record.ts";
import { type AgentRegistry, REPORT_KEYS_MAX, tooManyReportKeys } from "../fleet/agent-registry.ts";
import type { InboxItem } from "../shards/ports.ts";
import { parseReport } from "./messages.ts";
import { inspectPeer, type Peer } from "./peer-identity.ts";

/** The two fields of a hello; both empty from an agent that does not sign. */
export interface AnnouncedKey {
  publicKey: Uint8Array;
  proof: Uint8Array;
}

export interface Signed {
  /** Empty: not signed. */
  signature: Uint8Array;
  keyId: string;
}

/** A report as it was sent or stored. */
export interface SentReport extends Signed {
  payload: Uint8Array;
  /** Where it stood in the batch that the signature is for. Missing: the signature is for this report alone. */
  batch?: BatchPlace | undefined;
}

/** To be kept with the report. */
export type Kept = Omit<ReportSignature, "payload">;

export interface ReportKeysOptions {
  registry: AgentRegistry;
  clock: Clock;
  log: Logger;
  trustDomain: string;
  pki: Pick<ChangingPki, "issuerOf" | "onChange">;
  /** Whether reports of agents that have no key are refused too. */
  requireSigned: boolean;
  /** A report was refused for good. */
  onRefused(agent: string, code: "report.unsigned" | "report.forged"): void;
}

/** Batches that were found to be signed, by what was looked at. */
const BATCHES_MAX = 1_000;

interface Announced {
  spkiSha256: string;
  key: ReportKey;
  /** While it is on its way to the store. */
  storing?: Promise<AgentRecord> | undefined;
}

export class ReportKeys {
  readonly #options: ReportKeysOptions;
  /** Of each agent that spoke to this replica: what it announced last. The store may not have it yet. */
  readonly #announced = new Map<string, Announced>();
  /** What became of looking at a stored key: the key, or null when nothing vouches for it. */
  #looked = new WeakMap<ReportKey, KeyObject | null>();
  /** The reports of a batch come out of the store one by one, and are of one signature: the oldest give way. */
  readonly #signedBatches = new Set<string>();

  constructor(options: ReportKeysOptions) {
    this.#options = options;
    options.pki.onChange(() => {
      this.#looked = new WeakMap();
    });
  }

  /**
   * Takes the key of a hello. At once, so that a welcome waits for no store: a report waits until the key is durable.
   * @throws InsituError `auth.denied`, `report.unsigned`, `limit.exceeded`: the agent keeps its reports
   */
  announce(peer: Peer, { publicKey, proof }: AnnouncedKey): void {
    const { registry, clock } = this.#options;
    const known = registry.known(peer.id)?.reportKeys ?? [];
    if (publicKey.length === 0) return this.#refuseUnsigned(peer, known.length > 0);
    const key: ReportKey = {
      id: reportKeyId(publicKey),
      publicKey: Buffer.from(publicKey).toString("base64"),
      proof: Buffer.from(proof).toString("base64"),
      certificate: Buffer.from(peer.certificateDer).toString("base64"),
      addedAtMs: clock.wallMs(),
    };
    if (!this.#keyOf(peer.id, key)) {
      throw new InsituError(
        "auth.denied",
        "the proof for the key that signs reports is not by the key of this connection's certificate",
      );
    }
    const current = known.find(({ id }) => id === key.id);
    // A certificate of another issuer vouches for it from now on: the former one may be retired.
    if (current && this.#issuerOf(current) === this.#issuerOf(key)) return;
    if (!current && known.length >= REPORT_KEYS_MAX)
      throw new InsituError("limit.exceeded", tooManyReportKeys(peer.id));
    const announced: Announced = { spkiSha256: peer.spkiSha256, key };
    this.#announced.set(peer.id, announced);
    this.#store(peer.id, announced).catch(() => {
      // Said already; the first report with this key tries again.
    });
  }

  #store(agent: string, announced: Announced): Promise<AgentRecord> {
    const { registry, log } = this.#options;
    announced.storing ??= registry
      .addReportKey(agent, announced.spkiSha256, announced.key)
      .then(
        (record) => {
          log.info({ agentId: agent, keyId: announced.key.id }, "key that signs reports is known");
          return record;
        },
        (err: unknown) => {
          log.warn({ agentId: agent, err }, "key that signs reports is not stored yet");
          throw err;
        },
      )
      .finally(() => {
        announced.storing = undefined;
      });
    return announced.storing;
  }

  /**
   * Resolves with the signature to be kept; undefined for an agent that does not sign.
   * @throws InsituError `report.unsigned`, `report.forged`: for good; anything else: cannot be told now
   */
  async check(agent: string, sent: SentReport): Promise<Kept | undefined> {
    const { requireSigned } = this.#options;
    const keys = await this.#keysOf(agent, sent.keyId);
    if (sent.signature.length === 0) {
      if (keys.length === 0 && !requireSigned) return undefined;
      throw this.#refusal(
        agent,
        "report.unsigned",
        keys.length > 0
          ? `the report is not signed, and ${agent} signs its reports`
          : `the report is not signed, and this server takes none that is not (--require-signed-reports): upgrade the agent ${agent}`,
      );
    }
    const key = this.#among(keys, agent, sent.keyId);
    if (!key || !this.#isSigned(key, agent, sent)) throw this.#forged(agent, key !== undefined);
    const batch = sent.batch && { batch: sent.batch };
    return { keyId: sent.keyId, signature: Buffer.from(sent.signature).toString("base64"), ...batch };
  }

  /**
   * The same for reports under one signature, which is looked at once: what it gives resolves for the report at that
   * index of the batch, and throws as `check`.
   */
  checkBatch(agent: string, payloads: readonly Uint8Array[], sent: Signed): (index: number) => Promise<Kept> {
    const signature = Buffer.from(sent.signature).toString("base64");
    let looking: ReturnType<ReportKeys["lookAtBatch"]> | undefined;
    return async (index) => {
      looking ??= this.lookAtBatch(REPORT_BATCH_PURPOSE, agent, payloads.map(leafHash), sent);
      const { tree, isKnown, isSigned } = await looking;
      if (!isSigned) throw this.#forged(agent, isKnown);
      return { keyId: sent.keyId, signature, batch: tree.placeOf(index) };
    };
  }

  /** Whether the agent has signed a batch with these leaves. @throws InsituError retryable */
  async lookAtBatch(purpose: BatchPurpose, agent: string, leaves: readonly Uint8Array[], sent: Signed) {
    const tree = new BatchTree(leaves);
    const key = this.#among(await this.#keysOf(agent, sent.keyId), agent, sent.keyId);
    const about = { purpose, agent, batch: tree, signature: sent.signature, keyId: sent.keyId };
    return {
      tree,
      isKnown: key !== undefined,
      isSigned: key !== undefined && this.#isBatchSigned(key, about),
    };
  }

  /** Whether this server takes nothing of the agent that is not signed. @throws InsituError retryable */
  async mustSign(agent: string): Promise<boolean> {
    return this.#options.requireSigned || (await this.#keysOf(agent, "")).length > 0;
  }

  /**
   * Whether the agent has, at any time, signed that batch: also under a key of before the name was enrolled anew.
   * @throws InsituError retryable
   */
  async hasSigned(purpose: BatchPurpose, agent: string, batch: Batch, sent: Signed): Promise<boolean> {
    const { signature, keyId } = sent;
    const key =
      this.#among(this.#formerOf(agent), agent, keyId) ??
      this.#among(await this.#keysOf(agent, keyId), agent, keyId) ??
      this.#among(this.#formerOf(agent), agent, keyId); // the look into the store may have brought it
    return key !== undefined && this.#isBatchSigned(key, { purpose, agent, batch, signature, keyId });
  }

  /** Wall time since when an agent of that name signs; undefined when none does. @throws InsituError retryable */
  async signsSinceMs(agent: string): Promise<number | undefined> {
    const keys = [...(await this.#keysOf(agent, "")), ...this.#formerOf(agent)];
    return keys.length === 0 ? undefined : Math.min(...keys.map(({ addedAtMs }) => addedAtMs));
  }

  #formerOf(agent: string): readonly ReportKey[] {
    return this.#options.registry.known(agent)?.formerReportKeys ?? [];
  }

  #among(keys: readonly ReportKey[], agent: string, keyId: string): KeyObject | undefined {
    const stored = keys.find(({ id }) => id === keyId);
    return stored && this.#keyOf(agent, stored);
  }

  #isSigned(key: KeyObject, agent: string, { payload, signature, keyId, batch: place }: SentReport): boolean {
    if (place === undefined) return verifyReport(key, this.#uriOf(agent), payload, signature);
    const batch = batchAt(leafHash(payload), place);
    if (batch === undefined) return false;
    return this.#isBatchSigned(key, { purpose: REPORT_BATCH_PURPOSE, agent, batch, signature, keyId });
  }

  #isBatchSigned(
    key: KeyObject,
    about: { purpose: BatchPurpose; agent: string; batch: Batch } & Signed,
  ): boolean {
    const { purpose, agent, batch, signature, keyId } = about;
    const [root, bytes] = [batch.root, signature].map((part) => Buffer.from(part).toString("base64"));
    const known = [purpose, agent, keyId, batch.size, root, bytes].join(" ");
    if (this.#signedBatches.has(known)) return true;
    if (!verifyBatch(key, { purpose, agentUri: this.#uriOf(agent), batch }, signature)) return false;
    this.#signedBatches.add(known);
    const [oldest] = this.#signedBatches;
    if (this.#signedBatches.size > BATCHES_MAX) this.#signedBatches.delete(oldest!);
    return true;
  }

  #forged(agent: string, isKnown: boolean): InsituError {
    return this.#refusal(
      agent,
      "report.forged",
      isKnown
        ? `the signature of the report is not one of ${agent} over this report`
        : `the report is signed with a key that is not known to be one of ${agent}`,
    );
  }

  /** Of a report that went through the store. @throws as `check` */
  async checkStored({ agent, report, signed }: InboxItem): Promise<void> {
    const unsigned = { payload: new Uint8Array(), signature: new Uint8Array(), keyId: "" };
    if (signed === undefined) return void (await this.check(agent, unsigned));
    const payload = signed.payload === undefined ? reportBytes(report) : Buffer.from(signed.payload, "utf8");
    const signature = Buffer.from(signed.signature, "base64");
    await this.check(agent, { payload, signature, keyId: signed.keyId, batch: signed.batch });
    // Both came from the store: what is acted upon is to be what was signed.
    if (Buffer.compare(reportBytes(parseReport(payload)), reportBytes(report)) === 0) return;
    throw this.#refusal(agent, "report.forged", "the report is not the one that was signed");
  }

  #refusal(agent: string, code: "report.unsigned" | "report.forged", message: string): InsituError {
    this.#options.onRefused(agent, code);
    return new InsituError(code, message);
  }

  /** A release of before holds the reports of its successor: they would be refused for good, so it is not let in. */
  #refuseUnsigned(peer: Peer, signedBefore: boolean): void {
    if (signedBefore) {
      throw new InsituError(
        "report.unsigned",
        `the agent ${peer.id} has signed its reports, and now brings no key for them: start the release again that it ran before, or revoke it and join it anew`,
      );
    }
    if (this.#options.requireSigned) {
      throw new InsituError(
        "report.unsigned",
        `the agent ${peer.id} does not sign its reports, and this server takes no others (--require-signed-reports): upgrade the agent`,
      );
    }
  }

  /**
   * From the store, where memory does not have the key: it may have come to another replica a moment ago.
   * @throws InsituError retryable: a report that cannot be looked at now is not refused
   */
  async #keysOf(agent: string, keyId: string): Promise<readonly ReportKey[]> {
    const { registry } = this.#options;
    let record = registry.known(agent);
    try {
      if (record === undefined) record = await registry.stored(agent);
      const announced = this.#announced.get(agent);
      // Also for a report without a signature: it is not to be taken because the key is still on its way.
      const current = announced !== undefined && keysOf(record).includes(announced.spkiSha256);
      if (current && !has(record, announced.key.id)) record = await this.#store(agent, announced);
      if (!current && announced?.key.id === keyId && !has(record, keyId))
        throw new InsituError("unavailable", "the certificate that vouches for the key was replaced");
      if (keyId !== "" && !has(record, keyId)) record = await registry.stored(agent);
    } catch (err) {
      throw new InsituError("store.unavailable", `the keys of ${agent} cannot be read now`, {
        retryable: true,
        cause: err,
      });
    }
    return record?.reportKeys ?? [];
  }

  /** Undefined unless a certificate of ours, for this agent, vouches for it. */
  #keyOf(agent: string, stored: ReportKey): KeyObject | undefined {
    let key = this.#looked.get(stored);
    if (key === undefined) {
      key = this.#vouchedFor(agent, stored) ?? null;
      this.#looked.set(stored, key);
    }
    return key ?? undefined;
  }

  #vouchedFor(agent: string, stored: ReportKey): KeyObject | undefined {
    const { trustDomain } = this.#options;
    const spki = Buffer.from(stored.publicKey, "base64");
    const der = Buffer.from(stored.certificate, "base64");
    const verdict = inspectPeer(der, { trustDomain, nowMs: stored.addedAtMs });
    if (!verdict.ok || verdict.peer.id !== agent || reportKeyId(spki) !== stored.id) return undefined;
    const certificate = new X509Certificate(der);
    if (this.#options.pki.issuerOf(certificate) === undefined) return undefined;
    const message = signedReportKey(this.#uriOf(agent), spki);
    if (!verify("sha256", message, certificate.publicKey, Buffer.from(stored.proof, "base64")))
      return undefined;
    return readReportKey(spki);
  }

  #issuerOf({ certificate }: ReportKey): string | undefined {
    return this.#options.pki.issuerOf(new X509Certificate(Buffer.from(certificate, "base64")));
  }

  #uriOf(agent: string): string {
    const [environment = "", name = ""] = agent.split("/");
    return agentUri(this.#options.trustDomain, { environment, name });
  }
}

function has(record: AgentRecord | undefined, keyId: string): boolean {
  return record?.reportKeys.some(({ id }) => id === keyId) ?? false;
}
