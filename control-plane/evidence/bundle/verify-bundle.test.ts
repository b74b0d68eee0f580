import { beforeEach, describe, expect, test } from "vitest";
import { digestOf } from "../../../shared/model/canonical.ts";
import { fromBase64, toBase64 } from "../../../shared/provenance/encoding.ts";
import type { LedgerDecision } from "../../../shared/provenance/ledger-entry.ts";
import { systemClock } from "../../../shared/system.ts";
import { outcome } from "../../../test/support/specs.ts";
import { failures, patients, SampleLedger, study, verified } from "./bundle.fixture.ts";
import type { Check } from "./findings.ts";
import { type BundleRecord, formatRecord } from "./records.ts";
import { BundleVerifier, type VerifiedBundle } from "./verify-bundle.ts";

const sealedOutcome = (atMs: number) => outcome({ startedAtMs: atMs + 20, finishedAtMs: atMs + 900 });

let ledger: SampleLedger;
beforeEach(async () => {
  ledger = await SampleLedger.open(systemClock.wallMs());
});

function result(records: readonly BundleRecord[] = ledger.records(), kept: string[] = []): VerifiedBundle {
  return verified(records, { ...ledger.trust, kept });
}

test("a bundle in order has no failures and no open items, and says what rests on the server's word", () => {
  const kept = ledger.checkpoint();
  ledger.run({ runId: "run-2", atMs: ledger.startMs + 90_000 });
  const found = result(ledger.records(), [kept]);
  expect(failures(found)).toEqual([]);
  expect(found.findings.counts).toEqual({ failed: 0, open: 0, unchecked: 1 });
  expect(found.findings.kept).toEqual([
    expect.objectContaining({ check: "revocation", detail: expect.stringContaining("server's word") }),
  ]);
  expect(found.leaves).toEqual({ shown: 11, before: 0, among: 0, after: 0 });
  const passed = Object.fromEntries(found.findings.table.map((row) => [row.check, row.passed]));
  expect(passed).toEqual({
    format: 1,
    checkpoint: 1,
    kept: 1,
    tree: 11,
    order: 11,
    signature: 2,
    validity: 2,
    revocation: 2,
    attempt: 4,
    epoch: 4,
    receipt: 2,
    time: 2,
    veto: 2,
    pipeline: 3,
    policy: 1,
    residency: 2,
  });
});

test("without a root and a key the bundle's own are believed, and that is said", () => {
  const found = verified(ledger.records(), { kept: [] });
  expect(failures(found)).toEqual([]);
  expect(found.findings.kept.map(({ where }) => where)).toEqual(
    expect.arrayContaining(["key of the ledger", "roots"]),
  );
});

/** Whoever can only change the bundle. The checkpoint is as the ledger signed it. */
describe("a bundle that was changed on its way is found:", () => {
  const changed = (change: (leaves: BundleRecord[]) => BundleRecord[]): BundleRecord[] => {
    const records = ledger.records();
    const isLeaf = ({ kind }: BundleRecord): boolean => kind === "leaf";
    const at = records.findIndex(isLeaf);
    const leaves = change(records.filter(isLeaf));
    const rest = records.filter((record) => !isLeaf(record) && record.kind !== "end");
    const whole = [...rest.slice(0, at), ...leaves, ...rest.slice(at)];
    return [...whole, { kind: "end", records: whole.length }];
  };
  const flipped = (leaf: BundleRecord): BundleRecord => {
    if (leaf.kind !== "leaf") throw new Error("no leaf");
    const bytes = fromBase64(leaf.leaf)!;
    bytes[60]! ^= 1;
    return { kind: "leaf", leaf: toBase64(bytes) };
  };

  test.each<[string, (leaves: BundleRecord[]) => BundleRecord[], RegExp]>([
    ["a bit is flipped", (leaves) => leaves.with(3, flipped(leaves[3]!)), /^tree: their root/],
    ["a leaf is dropped", (leaves) => leaves.toSpliced(2, 1), /^tree: 5 leaves/],
    ["the last leaves are dropped", (leaves) => leaves.slice(0, -2), /^tree: 4 leaves/],
    [
      "two leaves are reordered",
      (leaves) => leaves.with(2, leaves[3]!).with(3, leaves[2]!),
      /^tree: their root/,
    ],
    ["a leaf is there twice", (leaves) => [...leaves, leaves[4]!], /^tree: 7 leaves/],
  ])("%s", (_what, change, expected) => {
    expect(failures(result(changed(change)))).toEqual(
      expect.arrayContaining([expect.stringMatching(expected)]),
    );
  });

  test("it breaks off, or lines are taken out at its end", () => {
    const records = ledger.records();
    expect(failures(result(records.slice(0, -1)))).toContain("format: the bundle breaks off");
    expect(failures(result(records.toSpliced(-2, 1))).join()).toMatch(/format: 12 records should stand/);
  });

  test("lines that are made to break whoever reads them are failures, and the others are read", () => {
    const lines = ledger.records().map((record) => formatRecord(record).trimEnd());
    const deep = `${"[".repeat(50_000)}${"]".repeat(50_000)}`;
    const bad = [
      '{"kind":"pipeline","version":"v","spec":{"name":"\\ud800","steps":[]}}',
      `{"kind":"pipeline","version":"v","spec":{"name":"n","steps":[],"deep":${deep}}}`,
      '{"kind":"leaf","leaf":"?"}',
      "{}",
      "",
    ];
    for (const line of bad) {
      const verifier = new BundleVerifier(ledger.trust);
      for (const one of lines.toSpliced(-1, 0, line)) verifier.line(one);
      const found = verifier.finish();
      expect(failures(found).join("\n")).toMatch(/^format: /m);
      expect(found.attempts).toHaveLength(1);
    }
  });

  test("its own roots are no certificates", () => {
    const records = ledger.records();
    const [first, second, ...rest] = records;
    const swapped = [first!, { ...second, rootsPem: ["no certificate"] } as BundleRecord, ...rest];
    expect(failures(verified(swapped, { kept: [] }))).toEqual([
      "signature: a certificate of them cannot be read",
      expect.stringMatching(/^signature: .*not issued by a trusted root/),
    ]);
  });

  test("the text of a pipeline, or of the policy, is another one", () => {
    const swapped = ledger.records().map((record): BundleRecord => {
      if (record.kind === "pipeline") return { ...record, spec: { ...study, description: "harmless" } };
      return record.kind === "policy" ? { ...record, rules: {} } : record;
    });
    expect(failures(result(swapped))).toEqual([
      expect.stringMatching(/^pipeline: its digest is/),
      expect.stringMatching(/^policy: its text/),
    ]);
  });

  test("a dataset's residency is another one than was applied", () => {
    const widened = { ...patients, residency: ["US"] };
    const records = ledger
      .records()
      .map((record): BundleRecord => (record.kind === "dataset" ? { ...record, spec: widened } : record));
    const found = result(records);
    expect(found.findings.kept).toContainEqual(
      expect.objectContaining({ level: "unchecked", check: "residency" }),
    );
  });

  test("leaves are left out as hashes: what rests on that is said, and nothing fails", () => {
    const whole = ledger.records();
    const kept = changed((leaves) => leaves.slice(4));
    expect(failures(result(kept))).not.toEqual([]);
    const hashes = ledger.hashes(4);
    const nodes: BundleRecord = { kind: "nodes", nodes: hashes };
    const records = changed((leaves) => [nodes, ...leaves.slice(4)]);
    const found = result(records);
    expect(whole.length).toBe(records.length + 3);
    expect(failures(found)).toEqual([]);
    expect(found.leaves).toEqual({ shown: 2, before: 4, among: 0, after: 0 });
    expect(found.findings.kept).toContainEqual(
      expect.objectContaining({ level: "unchecked", where: "leaves that were left out" }),
    );
  });
});

/** Whoever has the ledger's key and NATS, and signs a ledger of their own. What agents have signed they cannot make. */
describe("a ledger that is a lie, signed as if it was true, is found:", () => {
  const decisionAt = (index: number, change: (decision: LedgerDecision) => LedgerDecision): void => {
    const entry = ledger.entries[index]!;
    if (entry.kind !== "decision") throw new Error("no decision");
    ledger.entries[index] = { ...entry, decision: change(entry.decision) };
  };
  const PLACED = 2;
  const RECEIPT = 4;
  const ENDED = 5;
  const again = () => ledger.startMs + 120_000;

  test.each<[string, () => void | Promise<void>, Check, RegExp]>([
    [
      "the placement says another place than the agent",
      () => decisionAt(PLACED, (was) => ({ ...was, environment: "elsewhere" }) as LedgerDecision),
      "attempt",
      /it ran in dream, and was placed in elsewhere/,
    ],
    [
      "the policy is changed after the fact",
      () =>
        decisionAt(
          PLACED,
          (was) => ({ ...was, policyVersion: `sha256:${"c".repeat(64)}` }) as LedgerDecision,
        ),
      "attempt",
      /another policy than the one under which/,
    ],
    [
      "the placement hides that it reads the dataset",
      () => decisionAt(PLACED, (was) => ({ ...was, reads: [] }) as LedgerDecision),
      "attempt",
      /it reads patients, and was placed as one that reads nothing/,
    ],
    [
      "a receipt is stripped, and its end says that there was one",
      () => void ledger.entries.splice(RECEIPT, 1),
      "receipt",
      /the receipt that it should have is not there/,
    ],
    [
      "the end of an attempt is stripped",
      () => void ledger.entries.splice(ENDED, 1),
      "receipt",
      /no end of an attempt follows/,
    ],
    [
      "a receipt is replayed for another attempt",
      () => {
        const old = ledger.entries[RECEIPT]!;
        ledger.run({
          runId: "run-2",
          atMs: again(),
          receipt: () => (old.kind === "receipt" ? old.receipt : undefined),
        });
      },
      "attempt",
      /the receipt is of run-1\/fit/,
    ],
    [
      "a whole run is there twice",
      () => void ledger.entries.push(...ledger.entries.slice(1)),
      "order",
      /it is of message 1 of RUNS/,
    ],
    [
      "an epoch is given twice",
      () => ledger.attempt({ runId: "run-1", atMs: again() }),
      "epoch",
      /placed after epoch 1/,
    ],
    [
      "a second outcome of an attempt counts",
      () => ledger.attempt({ runId: "run-1", epoch: 2, atMs: again() }),
      "epoch",
      /two outcomes/,
    ],
    [
      "a receipt is back-dated",
      () => ledger.run({ runId: "run-2", atMs: again(), outcome: { startedAtMs: 5, finishedAtMs: 6 } }),
      "time",
      /began before it was placed/,
    ],
    [
      "a receipt is dated into the future",
      () =>
        ledger.run({
          runId: "run-2",
          atMs: again(),
          outcome: { finishedAtMs: again() + 3_600_000 },
        }),
      "time",
      /ended after its end was recorded/,
    ],
    [
      "the certificate is another agent's",
      async () => {
        const other = await ledger.authority.agent("dream", "a2");
        ledger.run({
          runId: "run-2",
          atMs: again(),
          receipt: (mine, offer) => ({
            ...mine,
            certificates: other.seal(offer, sealedOutcome(again())).certificates,
          }),
        });
      },
      "signature",
      /does not vouch for the key/,
    ],
    [
      "another agent seals in the agent's place",
      async () => {
        const agent = await ledger.authority.agent("dream", "a2");
        ledger.run({ runId: "run-2", atMs: again(), agent });
      },
      "attempt",
      /the receipt is of dream\/a2, and dream\/a1 ended it/,
    ],
    [
      "an authority of their own issues the certificate",
      async () => {
        const agent = (await SampleLedger.open(ledger.startMs)).agent;
        ledger.run({ runId: "run-2", atMs: again(), agent });
      },
      "signature",
      /not issued by a trusted root/,
    ],
    [
      "what the agent sealed is changed",
      () =>
        ledger.run({
          runId: "run-2",
          atMs: again(),
          receipt: (mine) => {
            const text = Buffer.from(mine.envelope.payload, "base64").toString();
            const payload = Buffer.from(text.replace('"succeeded"', '"cancelled"')).toString("base64");
            return { ...mine, envelope: { ...mine.envelope, payload } };
          },
        }),
      "signature",
      /not signed by that key/,
    ],
    [
      "the step that ran is another than the version has",
      () =>
        ledger.run({
          runId: "run-2",
          atMs: again(),
          receipt: (_mine, offer) =>
            ledger.agent.seal({ ...offer, step: { ...offer.step, timeoutMs: 5 } }, sealedOutcome(again())),
        }),
      "pipeline",
      /another step than the version has/,
    ],
  ])("%s", async (_what, lie, check, expected) => {
    await lie();
    const found = result();
    expect(found.findings.kept).toContainEqual(
      expect.objectContaining({ level: "failed", check, detail: expect.stringMatching(expected) }),
    );
    // The checkpoint is signed over the lie: none of it is found by the tree.
    expect(found.findings.table.find((row) => row.check === "tree")?.failed).toBe(0);
  });

  test("the ledger is forked: a checkpoint that was kept contradicts it", () => {
    const kept = ledger.checkpoint();
    decisionAt(PLACED, (was) => ({ ...was, environment: "elsewhere" }) as LedgerDecision);
    ledger.run({ runId: "run-2", atMs: again() });
    expect(failures(result(ledger.records(), [kept]))).toContain(
      "kept: the ledger does not begin with what it was then: it was changed",
    );
  });

  test("the ledger is rolled back: a checkpoint that was kept is longer", () => {
    ledger.run({ runId: "run-2", atMs: again() });
    const kept = ledger.checkpoint();
    ledger.entries.splice(-5);
    expect(failures(result(ledger.records(), [kept]))).toContain("kept: the ledger has only 6 now");
  });

  test("a ledger of another key is refused with the key that was written down", async () => {
    const other = await SampleLedger.open(ledger.startMs);
    const found = verified(other.records(), ledger.trust);
    expect(failures(found).join()).toMatch(/checkpoint: no known key has signed it/);
  });

  test("a report is taken of an agent that was revoked before", () => {
    ledger.run({ runId: "run-2", atMs: again() });
    const records = ledger.records();
    const atMs = again() - 1_000;
    const revocation: BundleRecord = {
      kind: "revocation",
      agent: "dream/a1",
      atMs,
      by: "anna",
      reason: "stolen",
    };
    const end: BundleRecord = { kind: "end", records: records.length };
    const found = result([...records.slice(0, -1), revocation, end]);
    expect(failures(found)).toEqual(["revocation: dream/a1 had been revoked when its report was taken"]);
  });

  test("the site's policy refused, and it ran; a veto that is stripped breaks the seal", () => {
    const sitePolicy = digestOf("a policy");
    const refused = { code: "policy.veto", message: "no" };
    ledger.run({
      runId: "run-2",
      atMs: again(),
      outcome: { sitePolicy, error: refused },
    });
    expect(failures(result())).toEqual([
      expect.stringMatching(/^veto: the site's policy refused it, and it succeeded/),
    ]);
  });

  test("an attempt whose receipt nobody brought is an open item, and no failure", () => {
    ledger.run({ runId: "run-2", atMs: again(), receipt: () => undefined });
    const found = result();
    expect(failures(found)).toEqual([]);
    expect(found.findings.kept).toContainEqual(
      expect.objectContaining({ level: "open", detail: "no receipt from dream/a1 (succeeded)" }),
    );
  });

  test("an attempt whose end never came is an open item", () => {
    ledger.run({ runId: "run-2", atMs: again() });
    ledger.entries.splice(-2);
    expect(result().findings.kept).toContainEqual(
      expect.objectContaining({
        level: "open",
        where: "run-2/fit attempt 1 epoch 1",
        detail: "it has not ended",
      }),
    );
  });
});
