/** The page for auditors: its commands, as they stand there, verify a receipt, and find each thing that is changed. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { LedgerProofView } from "../control-plane/api/ledger-schemas.ts";
import { MemoryLedger } from "../control-plane/evidence/ledger.fixture.ts";
import { fromBase64, toBase64, utf8Bytes } from "../shared/provenance/encoding.ts";
import { entryBytes } from "../shared/provenance/ledger-entry.ts";
import type { SignedReceipt } from "../shared/provenance/signed-receipt.ts";
import { Authority, offerOf } from "./support/receipts.ts";
import { outcome, stepSpec } from "./support/specs.ts";

const PAGE = fileURLToPath(new URL("../docs/evidence.md", import.meta.url));
const script = readFileSync(PAGE, "utf8").match(/## By hand[\s\S]*?```sh\n([\s\S]*?)```/)?.[1] ?? "";
const tools = ["openssl", "jq", "xxd", "sha256sum", "bash"];
const missing = tools.filter((tool) => spawnSync("which", [tool]).status !== 0);

let directory: string;
let key: string;
let proof: LedgerProofView;
let authority: Authority;
let sealed: SignedReceipt;
let others: SignedReceipt;

async function proofOf(receipt: SignedReceipt, index: number, size: number): Promise<LedgerProofView> {
  const ledger = new MemoryLedger();
  for (let i = 0; i < size; i++) ledger.leaves.push(utf8Bytes(`leaf ${i}`));
  ledger.leaves[index] = entryBytes({
    v: 1,
    kind: "receipt",
    source: { stream: "RUNS", seq: 3, part: 0 },
    receipt,
  });
  ledger.places.push({ runId: "run-1", stepId: "fit", attempt: 1, epoch: 1, kind: "receipt", index });
  key = ledger.verifierKey;
  return await ledger.desk().prove("run-1", "fit", AbortSignal.timeout(5_000));
}

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "insitu-by-hand-"));
  authority = await Authority.open();
  writeFileSync(join(directory, "ca.pem"), authority.pki.caPem);
  const offer = offerOf({ step: stepSpec("fit", { reads: ["patients"] }) });
  sealed = (await authority.agent("dream", "a1")).seal(offer, outcome());
  others = (await authority.agent("dream", "a2")).seal(offer, outcome());
  proof = await proofOf(sealed, 5, 7);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function verified(of: LedgerProofView): { code: number | null; said: string } {
  writeFileSync(join(directory, "proof.json"), JSON.stringify(of));
  const done = spawnSync("bash", ["-c", script], {
    cwd: directory,
    env: { ...process.env, KEY: key },
    encoding: "utf8",
  });
  return { code: done.status, said: `${done.stdout}${done.stderr}` };
}

describe.skipIf(missing.length > 0)("with openssl, jq, xxd and coreutils", () => {
  test.each([
    [5, 7],
    [0, 1],
    [0, 5],
    [4, 5],
    [6, 8],
  ])("a receipt in leaf %i of %i verifies, and is shown", async (index, size) => {
    const { code, said } = verified(await proofOf(sealed, index, size));
    expect([code, said]).toEqual([
      0,
      expect.stringMatching(/"dataset": "patients"[\s\S]*"status": "succeeded"/),
    ]);
  });

  const flip = (text: string): string => {
    const bytes = fromBase64(text)!;
    bytes[bytes.length - 1]! ^= 1;
    return toBase64(bytes);
  };
  test.each<[string, () => Promise<LedgerProofView> | LedgerProofView]>([
    [
      "a leaf",
      () => ({ ...proof, leaves: proof.leaves.map((leaf) => ({ ...leaf, leaf: flip(leaf.leaf) })) }),
    ],
    [
      "the way",
      () => ({ ...proof, leaves: proof.leaves.map((leaf) => ({ ...leaf, proof: leaf.proof.map(flip) })) }),
    ],
    [
      "the place",
      () => ({ ...proof, leaves: proof.leaves.map((leaf) => ({ ...leaf, index: leaf.index - 1 })) }),
    ],
    ["the size", () => ({ ...proof, checkpoint: proof.checkpoint.replace("\n7\n", "\n6\n") })],
    [
      "the signature of the receipt",
      () => {
        const [signature] = sealed.envelope.signatures;
        const signatures = [{ ...signature!, sig: flip(signature!.sig) }];
        return proofOf({ ...sealed, envelope: { ...sealed.envelope, signatures } }, 5, 7);
      },
    ],
    ["the proof for its key", () => proofOf({ ...sealed, keyProof: others.keyProof }, 5, 7)],
    ["the certificate", () => proofOf({ ...sealed, certificates: others.certificates }, 5, 7)],
    ["the key with all that vouches for it", () => proofOf({ ...others, envelope: sealed.envelope }, 5, 7)],
    [
      "the authority",
      async () => {
        const elsewhere = await (await Authority.open()).agent("dream", "a1");
        return await proofOf(
          elsewhere.seal(offerOf({ step: stepSpec("fit", { reads: ["patients"] }) }), outcome()),
          5,
          7,
        );
      },
    ],
  ])("another thing in the place of %s is found", async (_, change) => {
    expect(verified(await change()).code).not.toBe(0);
  });
});

test("the page has commands, and a shell can read them", () => {
  expect(script).toMatch(/openssl/);
  expect(spawnSync("bash", ["-n", "-c", script]).status).toBe(0);
});
