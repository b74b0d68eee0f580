/** What the commands make of a server that lies, or breaks off. */
import { beforeAll, expect, test } from "vitest";
import { toBase64, utf8Bytes } from "../../../shared/provenance/encoding.ts";
import { entryBytes } from "../../../shared/provenance/ledger-entry.ts";
import { Authority, offerOf } from "../../../test/support/receipts.ts";
import { outcome, stepSpec } from "../../../test/support/specs.ts";
import type { LedgerKeyView, LedgerProofView } from "../../api/ledger-schemas.ts";
import { MemoryLedger } from "../../evidence/ledger.fixture.ts";
import { insitu, json, type Reply, SmallServer, stream } from "../cli.fixture.ts";

const RUN = "01jd4x00000000000000000000";
let ledger: MemoryLedger;
let proof: LedgerProofView;
let key: LedgerKeyView;

beforeAll(async () => {
  const authority = await Authority.open();
  const lease = { runId: RUN, stepId: "fit", attempt: 1, epoch: 1 };
  const offer = offerOf({ lease, step: stepSpec("fit", { reads: ["patients"] }) });
  const receipt = (await authority.agent("dream", "a1")).seal(offer, outcome());
  ledger = new MemoryLedger();
  ledger.rootsPem = [...authority.trust.rootsPem];
  for (let i = 0; i < 4; i++) ledger.leaves.push(utf8Bytes(`leaf ${i}`));
  const source = { stream: "RUNS", seq: 3, part: 0 };
  ledger.leaves.push(entryBytes({ v: 1, kind: "receipt", source, receipt }));
  ledger.places.push({ ...lease, kind: "receipt", index: 4 });
  proof = await ledger.desk().prove(RUN, "fit", AbortSignal.timeout(5_000));
  key = await ledger.desk().key();
});

const text =
  (body: string): Reply =>
  (response) => {
    response.writeHead(200, { "content-type": "text/plain" }).end(body);
  };

async function asked(argv: string[], routes: Record<string, Reply>) {
  await using server = await SmallServer.start(routes);
  return await insitu(["audit", ...argv], { server: server.url, token: "t" });
}
const proving = (shown: LedgerProofView) => ({ [`GET /v1/ledger/proofs/${RUN}/fit`]: json(shown) });

test("prove shows a receipt that verifies, and says whom it believed about the key", async () => {
  const written = await asked(["prove", `${RUN}/fit`], proving(proof));
  expect(written).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/signed by its agent[\s\S]*patients/),
  });
  expect(written.stderr).toMatch(/--key and --root/);
  const trusted = await asked(
    ["prove", `${RUN}/fit`, "--key", key.verifierKey, "-o", "json"],
    proving(proof),
  );
  expect(JSON.parse(trusted.stdout)).toEqual(proof);
});

test.each<[string, () => LedgerProofView, RegExp]>([
  [
    "a leaf that is another",
    () => ({ ...proof, leaves: [{ ...proof.leaves[0]!, leaf: toBase64(utf8Bytes("{}")) }] }),
    /leaf 4 is not in the tree/,
  ],
  [
    "a checkpoint of another key",
    () => ({ ...proof, checkpoint: new MemoryLedger().checkpoint(0).note }),
    /checkpoint does not verify/,
  ],
  [
    "roots of another installation",
    () => ({ ...proof, key: { ...proof.key, rootsPem: [] } }),
    /not issued by a trusted root/,
  ],
  ["the proof of another run", () => ({ ...proof, run: "another" }), /is of another step/],
])("prove prints nothing of a proof with %s, and ends with 1", async (_, change, reason) => {
  const written = await asked(["prove", `${RUN}/fit`, "-o", "json"], proving(change()));
  expect(written).toMatchObject({ code: 1, stdout: "", stderr: expect.stringMatching(reason) });
});

test("what a person wrote down about the key counts, not what the server says", async () => {
  const other = new MemoryLedger().verifierKey;
  const written = await asked(["prove", `${RUN}/fit`, "--key", other], proving(proof));
  expect(written).toMatchObject({ code: 1, stdout: "", stderr: expect.stringMatching(/does not verify/) });
  expect((await asked(["prove", "fit"], {})).code).toBe(2);
});

test("checkpoint prints the note as it is, and ends with 1 when the server doubts its ledger", async () => {
  const { note } = ledger.checkpoint();
  const routes = (trouble: string) => ({
    "GET /v1/ledger/key": json({ ...key, trouble }),
    "GET /v1/ledger/checkpoint": text(note),
  });
  expect(await asked(["checkpoint"], routes(""))).toMatchObject({ code: 0, stdout: note });
  const doubted = await asked(["checkpoint"], routes("it was changed"));
  expect(doubted).toMatchObject({ code: 1, stdout: note, stderr: expect.stringMatching(/it was changed/) });
});

test("reconcile ends with what it found, and never takes half an answer for a whole one", async () => {
  const finding = { kind: "missing", where: "part 0 of message 3 of RUNS", detail: "no leaf was made of it" };
  const summary = { leaves: 4, messages: 3, receipts: 1, ended: 1, findings: 0 };
  const line = (value: unknown): string => `${JSON.stringify(value)}\n`;
  const routes = (lines: string[], end?: "cut") => ({
    "GET /v1/ledger/key": json(key),
    "GET /v1/ledger/reconciliation": stream("application/x-ndjson", ["\n", ...lines], end ?? "end"),
  });
  const clean = await asked(["reconcile"], routes([line({ summary })]));
  expect(clean).toMatchObject({ code: 0, stdout: expect.stringMatching(/Nothing is missing/) });
  const found = await asked(
    ["reconcile"],
    routes([line({ finding }), line({ summary: { ...summary, findings: 1 } })]),
  );
  expect(found).toMatchObject({ code: 1, stdout: expect.stringMatching(/missing {2}part 0 of message 3/) });
  expect((await asked(["reconcile"], routes([line({ finding })]))).code).toBe(8);
  expect((await asked(["reconcile"], routes([line({ finding })], "cut"))).code).not.toBe(0);
});
