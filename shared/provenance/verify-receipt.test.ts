import { generateKeyPairSync, sign } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { Authority, offerOf, type Sealer } from "../../test/support/receipts.ts";
import { outcome, stepSpec } from "../../test/support/specs.ts";
import { reportKeyId, signedReportKey } from "../wire/report-signature.ts";
import { IN_TOTO_PAYLOAD, pae } from "./dsse.ts";
import { fromBase64, toBase64, utf8Bytes } from "./encoding.ts";
import { entryBytes, parseEntry } from "./ledger-entry.ts";
import { readReceipt, statementBytes } from "./receipt.ts";
import { RECEIPT_MAX_BYTES, SignedReceipt } from "./signed-receipt.ts";
import { ENTRY_MAX_BYTES } from "./tiles.ts";
import { receiptVerifier, verifyReceipt } from "./verify-receipt.ts";

let authority: Authority;
let agent: Sealer;
let other: Sealer;
beforeAll(async () => {
  authority = await Authority.open();
  agent = await authority.agent("dream", "a1");
  other = await authority.agent("dream", "a2");
});

const digest = `sha256:${"c".repeat(64)}`;
const reading = offerOf({
  step: stepSpec("fit", { reads: ["patients"], writes: ["model"] }),
  datasets: [{ name: "patients", classification: "restricted" }],
  inputs: { prepare: { rows: { type: "json", digest, bytes: 3, text: "344" } } },
});
const now = () => outcome({ startedAtMs: Date.parse("2026-11-25"), finishedAtMs: Date.parse("2099-01-01") });

/** Valid while the test runs. */
function ended() {
  const [leaf] = agent.seal(reading, now()).certificates;
  const verified = verifyReceipt(agent.seal(reading, now()), authority.trust);
  if (!leaf || verified.kind !== "verified") throw new Error("the fixture does not verify");
  const { notBeforeMs } = verified.certificate;
  return outcome({
    startedAtMs: notBeforeMs + 1,
    finishedAtMs: notBeforeMs + 2,
    outputs: { mean: { type: "json", digest, bytes: 4 } },
    egress: [{ kind: "output", name: "mean", verdict: "digest", sentBytes: 0, keptBytes: 4 }],
  });
}

test("a receipt says what ran, where, on what, and what left, and verifies from the root alone", () => {
  const verified = verifyReceipt(agent.seal(reading, ended()), authority.trust);
  expect(verified).toMatchObject({
    kind: "verified",
    validThen: true,
    receipt: {
      attempt: reading.lease,
      agent: { environment: "dream", name: "a1" },
      reads: [{ dataset: "patients", classification: "restricted" }],
      writes: [{ dataset: "model", classification: null }],
      inputs: [{ step: "prepare", output: "rows", digest, bytes: 3 }],
      outputs: [{ name: "mean", digest, bytes: 4 }],
      egress: [{ verdict: "digest", sentBytes: 0, keptBytes: 4 }],
      policy: { site: null },
      result: { status: "succeeded", exitCode: 0 },
    },
  });
});

test("a step that has nothing to do with data has no receipt", () => {
  expect(agent.signer.receiptFor(offerOf(), outcome(), null)).toBeUndefined();
});

test("what the schema makes of a receipt on its way is the receipt", () => {
  const sealed = agent.seal(reading, ended());
  expect(JSON.stringify(SignedReceipt.parse(JSON.parse(JSON.stringify(sealed))))).toBe(
    JSON.stringify(sealed),
  );
});

test("a certificate that was not valid when the attempt ended is told", () => {
  const late = verifyReceipt(agent.seal(reading, now()), authority.trust);
  expect(late).toMatchObject({ kind: "verified", validThen: false });
});

test("a renewed certificate vouches for the same key", async () => {
  const before = agent.seal(reading, ended());
  const again = await authority.agent("dream", "a1");
  const after = again.seal(reading, ended());
  expect(after.certificates).not.toEqual(before.certificates);
  const keys = [before, after].map((one) => {
    const verified = verifyReceipt(one, authority.trust);
    return verified.kind === "verified" ? verified.keyId : verified.reason;
  });
  expect(new Set(keys).size).toBe(1);
});

describe("it does not verify", () => {
  const flip = (base64: string): string => {
    const bytes = fromBase64(base64)!;
    bytes[bytes.length - 1]! ^= 1;
    return toBase64(bytes);
  };
  const signedBy = (sealed: SignedReceipt, text: string, vouching: Sealer): SignedReceipt => {
    const { privateKey, publicKey } = generateKeyPairSync("ed25519");
    const spki = publicKey.export({ type: "spki", format: "der" });
    const payload = utf8Bytes(text);
    const sig = toBase64(sign(null, pae(IN_TOTO_PAYLOAD, payload), privateKey));
    const uri = "spiffe://insitu.test/env/dream/agent/a1";
    return {
      ...sealed,
      envelope: {
        ...sealed.envelope,
        payload: toBase64(payload),
        signatures: [{ keyid: reportKeyId(spki), sig }],
      },
      publicKey: toBase64(spki),
      keyProof: toBase64(sign("sha256", signedReportKey(uri, spki), vouching.identity.keyPem)),
    };
  };
  const payloadOf = (sealed: SignedReceipt): string =>
    new TextDecoder().decode(fromBase64(sealed.envelope.payload)!);

  test.each<[string, (sealed: SignedReceipt) => SignedReceipt, RegExp]>([
    [
      "with another payload",
      (s) => ({
        ...s,
        envelope: { ...s.envelope, payload: toBase64(utf8Bytes(payloadOf(s).replace("dream", "drean"))) },
      }),
      /not signed by that key/,
    ],
    [
      "with another signature",
      (s) => ({
        ...s,
        envelope: { ...s.envelope, signatures: [{ sig: flip(s.envelope.signatures[0]!.sig) }] },
      }),
      /not signed by that key/,
    ],
    [
      "with another payload type",
      (s) => ({ ...s, envelope: { ...s.envelope, payloadType: "text/plain" } }),
      /not signed/,
    ],
    ["with another proof", (s) => ({ ...s, keyProof: flip(s.keyProof) }), /does not vouch/],
    [
      "with another agent's certificate",
      (s) => ({ ...s, certificates: other.seal(reading, ended()).certificates }),
      /does not vouch|the certificate is of .*a2, and the receipt of .*a1/,
    ],
    ["with no certificate", (s) => ({ ...s, certificates: ["AAAA"] }), /cannot be read/],
    ["signed by a key that nobody vouches for", (s) => signedBy(s, payloadOf(s), other), /does not vouch/],
    [
      "when another agent signs in this one's name",
      (s) => ({
        ...signedBy(s, payloadOf(s), other),
        certificates: other.seal(reading, ended()).certificates,
      }),
      /does not vouch/,
    ],
    ["signed over no statement", (s) => signedBy(s, "{}", agent), /no receipt/],
    [
      "when its subjects are not those of its predicate",
      (s) => signedBy(s, payloadOf(s).replace("attempt/run-1/fit", "attempt/run-2/fit"), agent),
      /subjects are not those/,
    ],
  ])("%s", (_, change, reason) => {
    const verdict = verifyReceipt(change(agent.seal(reading, ended())), authority.trust);
    expect(verdict).toEqual({ kind: "refused", reason: expect.stringMatching(reason) });
    // Neither when the same key and certificates were found good before.
    const many = receiptVerifier(authority.trust);
    expect(many(agent.seal(reading, ended()))).toMatchObject({ kind: "verified" });
    expect(many(change(agent.seal(reading, ended())))).toEqual(verdict);
  });

  test("when the certificate's own agent signs a receipt in the name of another", () => {
    const verdict = verifyReceipt(agent.lie(reading, ended(), { name: "a2" }), authority.trust);
    const reason = expect.stringMatching(/the certificate is of .*a1, and the receipt of dream\/a2/);
    expect(verdict).toEqual({ kind: "refused", reason });
  });

  test("under the root of another installation", async () => {
    const elsewhere = await Authority.open();
    const verdict = verifyReceipt(agent.seal(reading, ended()), elsewhere.trust);
    expect(verdict).toEqual({
      kind: "refused",
      reason: expect.stringMatching(/not issued by a trusted root/),
    });
  });
});

test("a receipt of very many things fits in a leaf, and says what it folded", () => {
  const outputs = Object.fromEntries(
    Array.from({ length: 2_000 }, (_, i) => [`output${i}`, { type: "text" as const, digest, bytes: i }]),
  );
  const sealed = agent.seal(reading, { ...ended(), outputs });
  const verified = verifyReceipt(sealed, authority.trust);
  if (verified.kind === "refused") throw new Error(verified.reason);
  expect(verified.receipt.outputs).toEqual([]);
  expect(verified.receipt.folded).toEqual([{ list: "outputs", count: 2_000, digest: expect.any(String) }]);
  expect(statementBytes(verified.receipt).length).toBeLessThanOrEqual(RECEIPT_MAX_BYTES);
});

test("the largest receipt there can be is one leaf, and comes back as it was", () => {
  const sealed = agent.seal(reading, ended());
  const payload = toBase64(new Uint8Array(RECEIPT_MAX_BYTES));
  const certificates = ["A".repeat(11_996)];
  const receipt = SignedReceipt.parse({ ...sealed, envelope: { ...sealed.envelope, payload }, certificates });
  const entry = {
    v: 1,
    kind: "receipt",
    source: { stream: "RUNS", seq: 2 ** 50, part: 9 },
    receipt,
  } as const;
  expect(entryBytes(entry).length).toBeLessThanOrEqual(ENTRY_MAX_BYTES);
  expect(parseEntry(entryBytes(entry))).toEqual(entry);
});

test("a leaf that would be too large is there by its digest", () => {
  const source = { stream: "RUNS", seq: 3, part: 0 };
  const decision = { kind: "run.cancelled", runId: "r", by: "ops", reason: "x".repeat(70_000) } as const;
  const leaf = parseEntry(entryBytes({ v: 1, kind: "decision", source, atMs: 1, decision }));
  expect(leaf).toMatchObject({ kind: "opaque", source, reason: "too-large" });
});

test("readers pass over what a later release adds", () => {
  const sealed = agent.seal(reading, ended());
  const text = new TextDecoder().decode(fromBase64(sealed.envelope.payload)!);
  const added = JSON.parse(text) as { predicate: Record<string, unknown> };
  added.predicate.later = { anything: 1 };
  expect(readReceipt(utf8Bytes(JSON.stringify(added)))).toMatchObject({ kind: "receipt" });
});

test("text that has no canonical JSON makes a receipt malformed, and throws nothing", () => {
  const { envelope } = agent.seal(reading, ended());
  const statement = JSON.parse(Buffer.from(fromBase64(envelope.payload)!).toString("utf8"));
  statement.subject[0].name = "\ud800";
  expect(readReceipt(utf8Bytes(JSON.stringify(statement)))).toMatchObject({ kind: "malformed" });
});
