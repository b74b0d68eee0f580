/**
 * Verifies a bundle line by line, with nothing but a root and the key of the ledger from elsewhere. Decides; no I/O.
 *
 * The leaves are made a tree of again, so that what was changed, left out, moved or put in shows in the root that the
 * checkpoint has; then they are held against each other.
 */
import { X509Certificate } from "node:crypto";
import { type Checkpoint, openCheckpoint } from "../../../shared/provenance/checkpoint.ts";
import { equalBytes, fromBase64, toBase64 } from "../../../shared/provenance/encoding.ts";
import { GrowingTree, HASH_BYTES } from "../../../shared/provenance/merkle.ts";
import { parseVerifierKey } from "../../../shared/provenance/signed-note.ts";
import { receiptVerifier } from "../../../shared/provenance/verify-receipt.ts";
import { AttemptBook, agentOf, type KnownAttempt, type KnownRun, nameOf } from "./attempt-book.ts";
import { type Change, FactsCheck } from "./facts-check.ts";
import { Findings } from "./findings.ts";
import { readLeaf, type Source } from "./leaf-facts.ts";
import { type BundleRecord, parseRecord, type RecordOf } from "./records.ts";

/** What the auditor has from elsewhere. What is missing is taken from the bundle, and said to be. */
export interface BundleTrust {
  /** PEM, one certificate each. */
  rootsPem?: readonly string[];
  verifierKey?: string;
  /** Checkpoints that were kept earlier: signed notes. */
  kept: readonly string[];
}

export interface VerifiedBundle {
  header: RecordOf<"bundle"> | null;
  ledger: { origin: string; size: number; root: string } | null;
  /** Leaves that were shown, and leaves of which no more than hashes are there: before, among and after those. */
  leaves: { shown: number; before: number; among: number; after: number };
  findings: Findings;
  attempts: readonly KnownAttempt[];
  runs: ReadonlyMap<string, KnownRun>;
  changes: ReadonlyMap<string, readonly Change[]>;
  revocations: readonly RecordOf<"revocation">[];
  policies: ReadonlySet<string>;
}

export class BundleVerifier {
  readonly #trust: BundleTrust;
  readonly #findings = new Findings();
  readonly #tree = new GrowingTree();
  readonly #book: AttemptBook;
  readonly #facts: FactsCheck;
  readonly #revocations: RecordOf<"revocation">[] = [];
  /** Of each stream the newest leaf, and how many had been left out before it. */
  readonly #last = new Map<string, Source & { hidden: number }>();
  readonly #leaves = { shown: 0, before: 0, among: 0, after: 0 };
  readonly #kept: Checkpoint[] = [];
  #records = 0;
  #header: RecordOf<"bundle"> | null = null;
  #checkpoint: Checkpoint | null = null;
  #verify: ReturnType<typeof receiptVerifier> | null = null;
  #ended = false;

  constructor(trust: BundleTrust) {
    this.#trust = trust;
    this.#facts = new FactsCheck(this.#findings);
    this.#book = new AttemptBook(
      this.#findings,
      () => this.#leaves.before + this.#leaves.among + this.#leaves.after === 0,
    );
  }

  /** One line, without its end. */
  line(text: string): void {
    const before = this.#records;
    const record = parseRecord(text);
    try {
      if (typeof record !== "string") return this.record(record);
      this.#findings.add("failed", "format", `line ${before + 1}`, record);
    } catch (err) {
      // A text that has no canonical JSON, or is nested too deeply: whoever made it did not mean well.
      this.#findings.add(
        "failed",
        "format",
        `line ${before + 1}`,
        `it cannot be read: ${(err as Error).message}`,
      );
    }
    this.#records = before + 1;
  }

  record(record: BundleRecord): void {
    const where = `line ${this.#records + 1}`;
    if (this.#ended) this.#findings.add("failed", "format", where, "it comes after the end");
    const isFirst = record.kind === "bundle" ? 0 : record.kind === "ledger" ? 1 : undefined;
    if (isFirst !== undefined && isFirst !== this.#records)
      this.#findings.add("failed", "format", where, `a record "${record.kind}" does not belong here`);
    else if (isFirst === undefined && !this.#checkpoint && this.#records < 2)
      this.#findings.add("failed", "format", where, "the records bundle and ledger are missing before it");
    else this.#take(record, where);
    this.#records += 1;
  }

  #take(record: BundleRecord, where: string): void {
    switch (record.kind) {
      case "bundle":
        this.#header = record;
        return;
      case "ledger":
        return this.#open(record);
      case "leaf":
        return this.#leaf(record.leaf, where);
      case "nodes":
        return this.#nodes(record, where);
      case "pipeline":
        return this.#facts.pipeline(record);
      case "dataset":
      case "environment":
        return this.#facts.resource(record);
      case "policy":
        return this.#facts.policy(record);
      case "revocation":
        this.#revocations.push(record);
        return;
      case "end":
        this.#ended = true;
        this.#findings.look(
          "format",
          where,
          record.records === this.#records ? undefined : `${record.records} records should stand before it`,
        );
    }
  }

  #open({ checkpoint, verifierKey, trustDomain, rootsPem }: RecordOf<"ledger">): void {
    const { verifierKey: own, rootsPem: ownRoots, kept } = this.#trust;
    if (own === undefined)
      this.#findings.add(
        "unchecked",
        "checkpoint",
        "key of the ledger",
        "none was given: the bundle's own is believed",
      );
    if (ownRoots === undefined)
      this.#findings.add("unchecked", "signature", "roots", "none were given: the bundle's own are believed");
    const roots = (ownRoots ?? rootsPem).filter(isCertificate);
    if (roots.length < (ownRoots ?? rootsPem).length)
      this.#findings.add("failed", "signature", "roots", "a certificate of them cannot be read");
    this.#verify = receiptVerifier({ trustDomain, rootsPem: roots });
    const key = parseVerifierKey(own ?? verifierKey);
    if (!key) {
      this.#findings.add("failed", "checkpoint", "key of the ledger", "it is no verifier key (name+id+key)");
      return;
    }
    const opened = openCheckpoint(checkpoint, key);
    this.#findings.look("checkpoint", "checkpoint", opened.kind === "refused" ? opened.reason : undefined);
    if (opened.kind === "verified") this.#checkpoint = opened.checkpoint;
    for (const [at, note] of kept.entries()) {
      const earlier = openCheckpoint(note, key);
      if (earlier.kind === "refused")
        this.#findings.add("failed", "kept", `kept checkpoint ${at + 1}`, earlier.reason);
      else this.#kept.push(earlier.checkpoint);
    }
    this.#compareKept();
  }

  #leaf(text: string, where: string): void {
    const index = this.#tree.size;
    // Without it, its absence is a failure already.
    if (!this.#verify) return;
    const facts = readLeaf(text, this.#verify);
    if (!facts) return this.#findings.add("failed", "format", where, "the leaf is not base64");
    this.#tree.append(facts.hash);
    if (this.#leaves.shown > 0) {
      // Leaves that were left out after others were shown lie among them after all.
      this.#leaves.among += this.#leaves.after;
      this.#leaves.after = 0;
    }
    this.#leaves.shown += 1;
    if (facts.kind === "unknown") {
      this.#book.settle();
      this.#findings.add(
        "unchecked",
        "order",
        `leaf ${index}`,
        "it is of a kind that this release does not know",
      );
    } else {
      this.#follows(index, facts.source);
      if (facts.kind === "receipt") this.#book.receipt(index, facts.source, facts.verified);
      else if (facts.kind === "opaque") {
        this.#book.settle();
        const what =
          facts.reason === "unreadable" ? "a message that nobody could read" : "more than a leaf can hold";
        this.#findings.add("open", "order", `leaf ${index}`, `it stands for ${what}; its digest is there`);
      } else {
        this.#book.decision(index, facts);
        if (facts.decision.kind === "resources.applied")
          this.#facts.applied(index, facts.atMs, facts.decision);
      }
    }
    this.#compareKept();
  }

  /** The writer goes through each stream from its beginning, and numbers the leaves of a message. */
  #follows(index: number, source: Source): void {
    const { before, among } = this.#leaves;
    const hidden = before + among;
    const last = this.#last.get(source.stream);
    this.#last.set(source.stream, { ...source, hidden });
    const isLater = source.seq > (last?.seq ?? 0);
    const isNext = last?.seq === source.seq && source.part === last.part + 1;
    // What leaves that were left out had of the message is not known.
    const isBehindHidden =
      hidden > (last?.hidden ?? 0) && (isLater || (last?.seq === source.seq && source.part > last.part));
    const fits = isNext || (isLater && source.part === 0) || isBehindHidden;
    this.#findings.look(
      "order",
      `leaf ${index}`,
      fits
        ? undefined
        : `it is of message ${source.seq} of ${source.stream}, part ${source.part}, after ${last?.seq}, part ${last?.part}`,
    );
  }

  #nodes({ nodes }: RecordOf<"nodes">, where: string): void {
    this.#book.settle(false);
    for (const { level, hash } of nodes) {
      const bytes = fromBase64(hash);
      if (bytes?.length !== HASH_BYTES) {
        this.#findings.add("failed", "format", where, "a hash has 32 bytes");
        return;
      }
      try {
        this.#tree.appendSubtree(level, bytes);
      } catch {
        this.#findings.add(
          "failed",
          "tree",
          where,
          `no subtree of height ${level} belongs at leaf ${this.#tree.size}`,
        );
        return;
      }
      if (this.#leaves.shown === 0) this.#leaves.before += 2 ** level;
      else this.#leaves.after += 2 ** level;
      this.#compareKept();
    }
  }

  #compareKept(): void {
    while (true) {
      const at = this.#kept.findIndex(({ size }) => size === this.#tree.size);
      if (at < 0) return;
      const [{ size, root }] = this.#kept.splice(at, 1) as [Checkpoint];
      const same = equalBytes(root, this.#tree.root);
      const wrong = same ? undefined : "the ledger does not begin with what it was then: it was changed";
      this.#findings.look("kept", `kept checkpoint of ${size} leaves`, wrong);
    }
  }

  /** After the last line. */
  finish(): VerifiedBundle {
    const header = this.#header;
    if (!header) this.#findings.add("failed", "format", "line 1", "it is no bundle");
    if (!this.#ended) this.#findings.add("failed", "format", "its end", "the bundle breaks off");
    this.#checkTree();
    this.#book.finish();
    this.#facts.finish(this.#book, header?.dataset ?? "");
    this.#checkRevocations();
    const checkpoint = this.#checkpoint;
    return {
      header,
      ledger: checkpoint && {
        origin: checkpoint.origin,
        size: checkpoint.size,
        root: toBase64(checkpoint.root),
      },
      leaves: this.#leaves,
      findings: this.#findings,
      attempts: [...this.#book.attempts.values()],
      runs: this.#book.runs,
      changes: this.#facts.changes,
      revocations: this.#revocations,
      policies: this.#facts.policies,
    };
  }

  #checkTree(): void {
    const checkpoint = this.#checkpoint;
    if (checkpoint) {
      const { size, root } = this.#tree;
      let wrong: string | undefined;
      if (size !== checkpoint.size)
        wrong = `${size} leaves are there, and the checkpoint is of ${checkpoint.size}`;
      else if (!equalBytes(root, checkpoint.root)) wrong = "their root is not that of the checkpoint";
      if (wrong === undefined) this.#findings.passed("tree", size);
      else this.#findings.add("failed", "tree", "leaves", wrong);
    }
    for (const { size } of this.#kept) {
      if (size > this.#tree.size)
        this.#findings.add(
          "failed",
          "kept",
          `kept checkpoint of ${size} leaves`,
          `the ledger has only ${this.#tree.size} now`,
        );
      else
        this.#findings.add(
          "unchecked",
          "kept",
          `kept checkpoint of ${size} leaves`,
          "it ends among leaves that were left out",
        );
    }
    const { before, among, after } = this.#leaves;
    if (before + among + after > 0)
      this.#findings.add(
        "unchecked",
        "order",
        "leaves that were left out",
        `${before} before those shown, ${among} among them, ${after} after them: that they do not matter is the word of whoever made the bundle`,
      );
  }

  /** By the control plane's time: an agent's own clock says what it likes. */
  #checkRevocations(): void {
    const revokedAtMs = new Map(this.#revocations.map(({ agent, atMs }) => [agent, atMs]));
    this.#findings.add(
      "unchecked",
      "revocation",
      "list of revoked agents",
      `${plural(revokedAtMs.size)}: the ledger has no leaves about them, so the list is the server's word`,
    );
    for (const { key, ends, receipts } of this.#book.attempts.values())
      for (const { leaf, receipt } of receipts) {
        const revoked = revokedAtMs.get(agentOf(receipt));
        const end = ends.find((one) => one.agent === agentOf(receipt));
        const late = revoked !== undefined && end !== undefined && end.atMs > revoked;
        this.#findings.look(
          "revocation",
          `leaf ${leaf}, ${nameOf(key)}`,
          late ? `${agentOf(receipt)} had been revoked when its report was taken` : undefined,
        );
      }
  }
}

function plural(agents: number): string {
  return agents === 1 ? "1 agent" : `${agents} agents`;
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem).raw.length > 0;
  } catch {
    return false; // the caller says so
  }
}
