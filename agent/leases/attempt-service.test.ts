import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { verifyReceipt } from "../../shared/provenance/verify-receipt.ts";
import { systemClock } from "../../shared/system.ts";
import { type Offer, type Outcome, ReportPayload } from "../../shared/wire/attempt.ts";
import { decodeLogEntries } from "../../shared/wire/log-codec.ts";
import { OWNERS_PURPOSE, ownersHeader, signedOwners } from "../../shared/wire/offer-owners.ts";
import { REPORT_MAX_BYTES } from "../../shared/wire/protocol.ts";
import { Authority, type Sealer } from "../../test/support/receipts.ts";
import { stepSpec } from "../../test/support/specs.ts";
import {
  LIMITS,
  leaseKey,
  offerOf,
  offerSigner,
  quiet,
  type TestDirectory,
  testDirectory,
  Until,
} from "../agent.fixture.ts";
import { noopExecutor } from "../executors/noop-executor.ts";
import { ProcessExecutor } from "../executors/process-executor.ts";
import { Journal } from "../journal/journal.ts";
import type { OfferPolicy } from "../policy/decision.ts";
import { NO_SANDBOX } from "../sandbox/sandbox.fixture.ts";
import { TestSupervisors } from "../supervisor/supervisor.fixture.ts";
import { AttemptService } from "./attempt-service.ts";
import { OfferReader } from "./offer-reader.ts";

const signer = offerSigner();
const authority = await Authority.open();
const agent: Sealer = await authority.agent("dream", "a1");
let directory: TestDirectory;
let journal: Journal;
let service: AttemptService;
let poison: { payload: string; reason: string }[] = [];
let supervisors: TestSupervisors;
const until = new Until();
/** How often the service said that another offer may be asked for. */
let freed = 0;
let policy: OfferPolicy | undefined;

function open(): void {
  supervisors = new TestSupervisors(directory.path);
  journal = new Journal(join(directory.path, "journal"), LIMITS);
  const processes = new ProcessExecutor({
    clock: systemClock,
    stateDir: directory.path,
    datasets: { patients: "/dev/null" },
    stepEnv: { PATH: process.env.PATH ?? "" },
    sandbox: NO_SANDBOX,
    killGraceMs: 200,
    supervisors,
  });
  const reader = new OfferReader();
  reader.setKey(signer.publicKeyPem);
  service = new AttemptService({
    clock: systemClock,
    log: quiet,
    journal,
    reader,
    policy,
    executors: [processes, noopExecutor],
    receipts: agent.signer,
    environment: "dream",
    agent: "dream/a1",
    stateDir: directory.path,
    slots: 2,
    centreNowMs: () => 1_000,
    onFree: () => {
      freed += 1;
      until.changed();
    },
    onPoison: (payload, reason) => poison.push({ payload: Buffer.from(payload).toString(), reason }),
  });
}
beforeEach(() => {
  freed = 0;
  policy = undefined;
  poison = [];
  directory = testDirectory();
  open();
});
afterEach(async () => {
  await service.stopAll("interrupted", "end of test");
  await supervisors.stop();
  await journal.close();
  directory[Symbol.dispose]();
});

/** A message as the queue gives it, and what was answered. */
function messageOf(offer: Offer, change: { payload?: Buffer; signature?: string } = {}) {
  const payload = change.payload ?? Buffer.from(JSON.stringify(offer));
  const answers: string[] = [];
  const answer = (text: string): void => {
    answers.push(text);
    until.changed();
  };
  const message = {
    payload,
    signature: change.signature ?? signer.sign(payload),
    ack: () => answer(`ack with ${journal.held().length} on record`),
    discard: () => answer("discard"),
    giveBack: () => answer("give back"),
  };
  return { message, answers };
}

const shell = (text: string, change: Partial<Offer["step"]> = {}) =>
  stepSpec("fit", { executor: { kind: "process", argv: ["sh", "-ec", text] }, ...change });
const reports = () =>
  journal.reportsAfter(0, 1_000).map(({ payload }) => ReportPayload.parse(JSON.parse(payload.toString())));
function outcomeOf(runId = "run-1"): Outcome {
  const report = reports().find((found) => found.kind === "finished" && found.lease.runId === runId);
  if (report?.kind !== "finished") throw new Error(`no outcome of ${runId}`);
  return report.outcome;
}

function receiptOfRun(runId?: string) {
  const { receipt } = outcomeOf(runId);
  if (!receipt) throw new Error("the outcome has no receipt");
  const verified = verifyReceipt(receipt, authority.trust);
  if (verified.kind === "refused") throw new Error(verified.reason);
  return verified.receipt;
}
const reads = { reads: ["patients"], writes: [] };
const patients = { datasets: [{ name: "patients", classification: "restricted" as const }] };

test.each([
  ["succeeded", "printf secret >&2", { status: "succeeded", exitCode: 0, error: null }],
  ["failed", "exit 3", { status: "failed", exitCode: 3, error: "exit" }],
])(
  "a step that reads data and has %s has a receipt in the journal with its outcome",
  async (_, text, result) => {
    const offer = offerOf({ step: shell(text, reads), ...patients });
    const { message } = messageOf(offer);
    await service.take(message);
    const receipt = receiptOfRun();
    expect(receipt).toMatchObject({ attempt: offer.lease, result });
    expect(receipt.reads).toEqual([{ dataset: "patients", classification: "restricted" }]);
    expect(receipt.offer).toBe(`sha256:${createHash("sha256").update(message.payload).digest("hex")}`);
    expect(receipt.egress).toEqual(outcomeOf().egress);
  },
);

test("a cancelled attempt has a receipt", async () => {
  const offer = offerOf({ step: shell("sleep 60", reads), ...patients });
  const done = service.take(messageOf(offer).message);
  await until.holds(() => journal.held().length === 1);
  service.stop(offer.lease, "cancelled", "not wanted");
  await done;
  expect(receiptOfRun().result).toMatchObject({ status: "cancelled" });
});

test("an attempt that a crash took, and one that the site refuses, have receipts under the offer they had", async () => {
  const offer = offerOf({ step: shell("true", reads), ...patients });
  const offerDigest = `sha256:${"7".repeat(64)}`;
  await journal.take({ offer, takenAtMs: 1, offerDigest }, { kind: "started", lease: offer.lease, atMs: 1 });
  await service.recover();
  expect(receiptOfRun()).toMatchObject({ offer: offerDigest, result: { status: "interrupted" } });

  const digest = `sha256:${"8".repeat(64)}`;
  await reopen({ decide: async () => ({ kind: "veto", digest, message: "not this one" }) });
  const vetoed = { ...offer, lease: leaseKey({ runId: "run-2" }) };
  await service.take(messageOf(vetoed).message);
  expect(receiptOfRun("run-2")).toMatchObject({
    policy: { site: { version: digest, decision: "veto" } },
    result: { status: "refused", error: "policy.veto" },
  });
});

test("a step that has nothing to do with data has no receipt", async () => {
  await service.take(messageOf(offerOf()).message);
  expect(outcomeOf()).not.toHaveProperty("receipt");
});

test("an offer is acknowledged when its lease is in the journal, and reported as started and finished", async () => {
  const { message, answers } = messageOf(offerOf());
  await service.take(message);
  expect(answers).toEqual(["ack with 1 on record"]);
  expect(reports().map(({ kind }) => kind)).toEqual(["started", "finished"]);
  expect(outcomeOf()).toMatchObject({ status: "succeeded" });
  expect(journal.held()).toEqual([]);
  expect(service.held()).toEqual([leaseKey()]); // until the control plane confirms the outcome
});

test("all of a step's log is on record before its outcome, and the outcome says where it ends", async () => {
  const offer = offerOf({ step: shell("for i in $(seq 200); do echo $i; done; echo err >&2") });
  await service.take(messageOf(offer).message);
  const { logLastSeq, logBytes } = outcomeOf();
  const entries = journal.logsAfter(0, 1_000).flatMap((c) => decodeLogEntries(c.encoding, c.entries));
  expect(entries.map(({ seq }) => seq)).toEqual(Array.from({ length: logLastSeq }, (_, i) => i + 1));
  expect(entries.reduce((sum, { data }) => sum + data.length, 0)).toBe(logBytes);
  const text = Buffer.concat(entries.filter((e) => e.stream === "stdout").map((e) => Buffer.from(e.data)));
  expect(text.toString()).toBe(Array.from({ length: 200 }, (_, i) => `${i + 1}\n`).join(""));
});

test.each<[string, (offer: Offer) => ReturnType<typeof messageOf>, RegExp]>([
  ["without a signature", (offer) => messageOf(offer, { signature: "" }), /not signed/],
  [
    "signed by another",
    (offer) => messageOf(offer, { signature: offerSigner().sign(Buffer.from("x")) }),
    /signature/,
  ],
  [
    "that was changed after it was signed",
    (offer) => {
      const { signature } = messageOf(offer).message;
      return messageOf({ ...offer, lease: leaseKey({ epoch: 2 }) }, { signature });
    },
    /signature/,
  ],
  [
    "whose signature was made for a report",
    (offer) => {
      const payload = Buffer.from(JSON.stringify(offer));
      return messageOf(offer, { signature: signer.sign(payload, "insitu.report.v1") });
    },
    /signature/,
  ],
  ["with a signature that is no base64", (offer) => messageOf(offer, { signature: "%%%" }), /signature/],
  ["that is not JSON", (offer) => messageOf(offer, { payload: Buffer.from("{") }), /not JSON/],
  ["that lacks a field", (offer) => messageOf(offer, { payload: Buffer.from('{"v":1}') }), /^field /],
  ["for another environment", (offer) => messageOf({ ...offer, environment: "hq" }), /environment hq/],
  ["that has expired", (offer) => messageOf({ ...offer, expiresAtMs: 999 }), /expired/],
])("an offer %s is counted, taken off the queue and never started", async (_, make, reason) => {
  const { message, answers } = make(offerOf());
  await service.take(message);
  expect(answers).toEqual(["discard"]);
  expect([...service.refused.keys()][0]).toMatch(reason);
  // The next one is asked for at once: a queue full of expired offers would never be emptied otherwise.
  expect(freed).toBe(1);
  expect(reports()).toEqual([]);
});

test("an offer that is replayed after a newer grant of its step is refused and counted", async () => {
  const old = messageOf(offerOf());
  await service.take(messageOf(offerOf({ lease: leaseKey({ epoch: 2 }) })).message);
  await service.take(old.message);
  expect(old.answers).toEqual(["discard"]);
  expect([...service.refused]).toEqual([["epoch 1 is older than 2", 1]]);
  expect(service.refusedOffers).toBe(1);
});

test("the same offer again is acknowledged and not started again", async () => {
  await service.take(messageOf(offerOf()).message);
  const again = messageOf(offerOf());
  await service.take(again.message);
  expect(again.answers).toEqual(["ack with 0 on record"]);
  expect(reports()).toHaveLength(2);
});

test("an offer that comes again after a restart is known, also when its outcome was delivered long ago", async () => {
  await service.take(messageOf(offerOf()).message);
  journal.ackReports(2);
  await supervisors.stop();
  await journal.close();
  open();
  await service.recover();
  expect([reports(), service.held()]).toEqual([[], []]);
  const again = messageOf(offerOf());
  await service.take(again.message);
  expect(again.answers).toEqual(["ack with 0 on record"]);
  expect(reports()).toEqual([]);
});

const DIGEST = `sha256:${"c".repeat(64)}`;

test("an offer that the site's policy refuses is never on record as taken, and its reason leaves with the outcome", async () => {
  await reopen({ decide: async () => ({ kind: "veto", digest: DIGEST, message: "rule commands: no" }) });
  const datasets = [{ name: "patients", classification: "secret" as const }];
  const step = shell(`touch ${directory.path}/ran`, { reads: ["patients"] });
  const { message, answers } = messageOf(offerOf({ step, datasets }));
  await service.take(message);
  expect(answers).toEqual(["ack with 0 on record"]);
  expect(reports().map(({ kind }) => kind)).toEqual(["finished"]);
  expect(outcomeOf()).toMatchObject({
    status: "refused",
    error: { code: "policy.veto", message: "rule commands: no" },
    sitePolicy: DIGEST,
  });
  expect(existsSync(join(directory.path, "ran"))).toBe(false);
  expect(freed).toBe(1);
  const again = messageOf(offerOf({ step, datasets }));
  await service.take(again.message);
  expect(again.answers).toEqual(["ack with 0 on record"]);
  expect(reports()).toHaveLength(1);
});

test("the site's policy hears who answers for the pipeline, and an offer with owners that nobody signed is not taken", async () => {
  const heard: unknown[] = [];
  await reopen({
    decide: async (_offer, owners) => {
      heard.push(owners);
      return { kind: "allow", digest: DIGEST };
    },
  });
  const owners = { pipeline: "statistics", datasets: {} };
  const json = Buffer.from(JSON.stringify(owners));
  const { message } = messageOf(offerOf());
  const header = ownersHeader(json, signer.sign(signedOwners(message.payload, json), OWNERS_PURPOSE));
  await service.take({ ...message, owners: header });
  expect(heard).toEqual([owners]);
  const next = messageOf(offerOf({ lease: leaseKey({ epoch: 2 }) }));
  await service.take({ ...next.message, owners: header });
  expect(next.answers).toEqual(["discard"]);
  expect([...service.refused.keys()]).toEqual(["its owners are not as the control plane signed them"]);
  expect(heard).toHaveLength(1);
});

test("a veto that cannot be written down goes back to the queue, and is told when the offer comes again", async () => {
  await reopen({ decide: async () => ({ kind: "veto", digest: DIGEST, message: "no" }) });
  const first = messageOf(offerOf());
  await journal.close(); // nothing can be written any more
  await service.take(first.message);
  expect(first.answers).toEqual(["give back"]);
  expect(service.freeSlots).toBe(2);
  open();
  const again = messageOf(offerOf());
  await service.take(again.message);
  expect(again.answers).toEqual(["ack with 0 on record"]);
  expect(outcomeOf()).toMatchObject({ status: "refused" });
});

test("outside the hours of its site an offer goes back to the queue, and is taken when they begin", async () => {
  let closed = true;
  await reopen({
    decide: async () => (closed ? { kind: "closed", reason: "night" } : { kind: "allow", digest: DIGEST }),
  });
  const first = messageOf(offerOf());
  await service.take(first.message);
  expect(first.answers).toEqual(["give back"]);
  closed = false;
  await service.take(messageOf(offerOf()).message);
  expect(outcomeOf()).toMatchObject({ status: "succeeded", sitePolicy: DIGEST });
});

test("an outcome names the policy under which its offer was taken, also after a restart under another", async () => {
  await reopen({ decide: async () => ({ kind: "allow", digest: DIGEST }) });
  const offer = offerOf();
  await journal.take(
    { offer, takenAtMs: 1, sitePolicy: DIGEST },
    { kind: "started", lease: offer.lease, atMs: 1 },
  );
  await reopen({ decide: async () => ({ kind: "allow", digest: `sha256:${"d".repeat(64)}` }) });
  await service.recover();
  expect(outcomeOf()).toMatchObject({ status: "interrupted", sitePolicy: DIGEST });
});

/** The agent's next start, under another policy. */
async function reopen(next: OfferPolicy): Promise<void> {
  await supervisors.stop();
  await journal.close();
  policy = next;
  open();
}

test("an offer that cannot be written down goes back to the queue, and is taken when it comes again", async () => {
  const offer = offerOf();
  const first = messageOf(offer);
  const broken = journal;
  await broken.close(); // nothing can be written any more
  await service.take(first.message);
  expect(first.answers).toEqual(["give back"]);
  expect(service.freeSlots).toBe(2);
  open();
  await service.take(messageOf(offer).message);
  expect(outcomeOf()).toMatchObject({ status: "succeeded" });
});

test("an offer beyond the slots goes back to the queue", async () => {
  const take = (runId: string) => {
    const made = messageOf(offerOf({ lease: leaseKey({ runId }), step: shell("exec sleep 60") }));
    return { ...made, done: service.take(made.message) };
  };
  const [one, two, three] = [take("run-1"), take("run-2"), take("run-3")];
  await three.done;
  expect(three.answers).toEqual(["give back"]);
  expect(service.freeSlots).toBe(0);
  await service.stopAll("cancelled", "enough");
  await Promise.all([one.done, two.done]);
  expect(service.freeSlots).toBe(2);
});

test("a cancel reaches exactly the epoch that it names", async () => {
  const offer = offerOf({ lease: leaseKey({ epoch: 2 }), step: shell("exec sleep 60") });
  const { message, answers } = messageOf(offer);
  const done = service.take(message);
  await until.holds(() => answers.length > 0);
  expect(service.stop(leaseKey({ epoch: 1 }), "cancelled", "old")).toBe(false);
  expect(service.stop(leaseKey({ epoch: 2 }), "cancelled", "by ada")).toBe(true);
  await done;
  expect(outcomeOf()).toMatchObject({ status: "cancelled", error: { code: "cancelled", message: "by ada" } });
});

test("of a step that reads confidential data neither log nor output nor error text leaves, and the bytes are counted", async () => {
  const step = shell("echo patient 7; printf 12345 > $INSITU_OUTPUT_DIR/count", {
    reads: ["patients"],
    outputs: { count: { type: "json", maxBytes: 100 } },
  });
  const datasets = [{ name: "patients", classification: "confidential" as const }];
  await service.take(messageOf(offerOf({ step, datasets })).message);
  const outcome = outcomeOf();
  expect(outcome.outputs.count).toEqual({
    type: "json",
    bytes: 5,
    digest: expect.stringMatching(/^sha256:/),
  });
  expect(outcome.egress).toEqual([
    { kind: "output", name: "count", verdict: "digest", sentBytes: 0, keptBytes: 5 },
    { kind: "log", name: "log", verdict: "withhold", sentBytes: 0, keptBytes: 10 },
  ]);
  expect(journal.logsAfter(0, 10)).toEqual([]);
  expect(outcome.logLastSeq).toBe(0);
  expect(readFileSync(join(directory.path, "site-logs/run-1/fit/1.1.log"), "utf8")).toBe("patient 7\n");
  expect(JSON.stringify(reports())).not.toMatch(/patient 7|12345/);
});

test("an attempt whose log cannot be kept at the site ends with that as its outcome", async () => {
  writeFileSync(join(directory.path, "site-logs"), "in the way");
  const datasets = [{ name: "patients", classification: "secret" as const }];
  const step = shell("true", { reads: ["patients"] });
  await service.take(messageOf(offerOf({ step, datasets })).message);
  expect(outcomeOf()).toMatchObject({ status: "failed", error: { code: "agent" } });
  expect(journal.held()).toEqual([]);
});

test("after a restart what was running is ended and reported as interrupted, once", async () => {
  const offer = offerOf({ step: shell(`echo one; echo $$ > ${directory.path}/pid; exec sleep 600`) });
  await journal.take({ offer, takenAtMs: 5 }, { kind: "started", lease: offer.lease, atMs: 5 });
  mkdirSync(join(directory.path, "work", "run-1", "fit.1.1", "work"), { recursive: true });
  await journal.close();
  open();
  await service.recover();
  expect(outcomeOf()).toMatchObject({ status: "interrupted", error: { code: "interrupted" } });
  expect(existsSync(join(directory.path, "work", "run-1"))).toBe(false);
  expect(service.held()).toEqual([offer.lease]);
  // The queue gives the offer again: its acknowledgement was lost with the process.
  const again = messageOf(offer);
  await service.take(again.message);
  expect(again.answers).toEqual(["ack with 0 on record"]);
  await service.recover();
  expect(reports().map(({ kind }) => kind)).toEqual(["started", "finished"]);
});

test("outputs that are too large together fail the attempt", async () => {
  const outputs = Object.fromEntries(
    ["a", "b"].map((n) => [n, { type: "text" as const, maxBytes: 400_000 }]),
  );
  const step = shell("for n in a b; do head -c 300000 /dev/zero > $INSITU_OUTPUT_DIR/$n; done", { outputs });
  await service.take(messageOf(offerOf({ step })).message);
  expect(outcomeOf()).toMatchObject({ status: "failed", error: { code: "output.too-large" }, outputs: {} });
});

test("a report that would be larger than the control plane takes fails its step, and says so", async () => {
  const outputs = { a: { type: "text" as const, maxBytes: 400_000 } };
  const step = shell("head -c 300000 /dev/zero > $INSITU_OUTPUT_DIR/a", { outputs });
  await service.take(messageOf(offerOf({ step })).message);
  expect(outcomeOf()).toMatchObject({
    status: "failed",
    exitCode: 0,
    error: { code: "report.too-large", message: expect.stringMatching(/bytes.*use artifacts/) },
    outputs: {},
  });
  const [report] = journal.reportsAfter(1, 1);
  expect(report!.payload.length).toBeLessThan(REPORT_MAX_BYTES);
});

test("a once step starts when the control plane has confirmed its holder, and not before", async () => {
  const step = { ...shell(`echo ran > ${directory.path}/ran`), once: true };
  const offer = offerOf({ step });
  const taken = service.take(messageOf(offer).message);
  while (!service.awaitsGrant) await systemClock.sleep(1);
  expect(existsSync(join(directory.path, "ran"))).toBe(false);
  service.granted(offer.lease);
  await taken;
  expect(existsSync(join(directory.path, "ran"))).toBe(true);
  expect(outcomeOf()).toMatchObject({ status: "succeeded" });
});

test("a once step that another agent holds never starts", async () => {
  const step = { ...shell(`echo ran > ${directory.path}/ran`), once: true };
  const offer = offerOf({ step });
  const taken = service.take(messageOf(offer).message);
  while (!service.awaitsGrant) await systemClock.sleep(1);
  service.stop(offer.lease, "cancelled", "superseded");
  await taken;
  expect(existsSync(join(directory.path, "ran"))).toBe(false);
  expect(outcomeOf()).toMatchObject({
    status: "cancelled",
    error: { message: expect.stringMatching(/never started/) },
  });
});

test("a message that is no offer, or of somebody else, leaves the queue and is told with its bytes", async () => {
  const bad = (payload: string, signature: string) => {
    const fate: string[] = [];
    const message = {
      payload: Buffer.from(payload),
      signature,
      ack: () => fate.push("ack"),
      discard: () => fate.push("discard"),
      giveBack: () => fate.push("give back"),
    };
    return { message, fate };
  };
  const stranger = offerSigner();
  for (const [payload, signature] of [
    ["junk", ""],
    ["junk", stranger.sign(Buffer.from("junk"))],
    ["junk", signer.sign(Buffer.from("junk"))],
    ["{}", signer.sign(Buffer.from("{}"))],
  ] as const) {
    const { message, fate } = bad(payload, signature);
    await service.take(message);
    expect(fate).toEqual(["discard"]);
  }
  expect(poison.map(({ payload }) => payload)).toEqual(["junk", "junk", "junk", "{}"]);
  expect(poison.map(({ reason }) => reason)).toEqual([
    "it is not signed",
    "its signature is not that of the control plane",
    "it is not JSON",
    expect.stringMatching(/^field /),
  ]);
});

test("at the deadline of a drain what runs is interrupted, and what is started once goes on unless it is forced", async () => {
  const gate = join(directory.path, "gate");
  const waits = shell(`while [ ! -e ${gate} ]; do sleep 0.02; done`);
  const [plain, single] = [leaseKey(), leaseKey({ runId: "run-2" })];
  const taken = [
    service.take(messageOf(offerOf({ lease: plain, step: waits })).message),
    service.take(messageOf(offerOf({ lease: single, step: { ...waits, once: true } })).message),
  ];
  while (!service.awaitsGrant) await systemClock.sleep(1);
  service.granted(single);
  expect(service.drain({ once: false, message: "drained by ana" })).toBe(1);
  await taken[0];
  expect(outcomeOf()).toMatchObject({ status: "interrupted", error: { message: "drained by ana" } });
  expect(service.running()).toEqual([single]);
  expect(service.drain({ once: false, message: "again" })).toBe(0);
  expect(service.drain({ once: true, message: "forced" })).toBe(1);
  await taken[1];
  expect(outcomeOf("run-2")).toMatchObject({ status: "interrupted", error: { message: "forced" } });
});
