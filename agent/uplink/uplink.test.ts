import { verify, X509Certificate } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Metadata, status } from "@grpc/grpc-js";
import { pino } from "pino";
import { afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { leafHash } from "../../shared/provenance/merkle.ts";
import { systemClock } from "../../shared/system.ts";
import type { LeaseKey } from "../../shared/wire/attempt.ts";
import { BatchTree, verifyBatch } from "../../shared/wire/batch-signature.ts";
import type { ReportBatch__Output } from "../../shared/wire/gen/insitu/agent/v1/ReportBatch.ts";
import { ERROR_CODE_METADATA } from "../../shared/wire/grpc.ts";
import { logLeaf } from "../../shared/wire/log-signature.ts";
import { CAPABILITY_REPORT_BATCH } from "../../shared/wire/protocol.ts";
import {
  readReportKey,
  reportKeyId,
  signedReportKey,
  verifyKept,
  verifyReport,
} from "../../shared/wire/report-signature.ts";
import {
  finished,
  LIMITS,
  leaseKey,
  openNetwork,
  type TestDirectory,
  testDirectory,
  Until,
} from "../agent.fixture.ts";
import type { Identity } from "../enrolment/identity.ts";
import { loadOrMakeReportSigner, type ReportSigner } from "../enrolment/report-key.ts";
import { Journal } from "../journal/journal.ts";
import { type Authority, createAuthority, TestGateway } from "./gateway.fixture.ts";
import { Gateways } from "./gateways.ts";
import { type AgentSide, Uplink } from "./uplink.ts";

let authority: Authority;
let directory: TestDirectory;
let journal: Journal;
let gateway: TestGateway;
let uplink: Uplink;
let side: Side;
let signer: ReportSigner;
const until = new Until();
let log: { level: number; msg: string; reason?: string; seq?: number }[];

class Side implements AgentSide {
  leases: LeaseKey[] = [];
  reason = "";
  readonly told: string[] = [];
  hello = () => ({
    slots: 2,
    executors: ["noop"],
    datasets: ["penguins"],
    labels: { rack: "7" },
    hostname: "h",
    sandbox: {
      boxes: true,
      summary: "bubblewrap 0.8.0",
      held: { memory: "cgroup v2" },
      notHeld: { cpu: "no" },
      unboxedUpTo: "internal",
      letsOut: true,
      runsContainers: true,
    },
    natsUserKey: "U1",
  });
  roots = () => undefined;
  held = () => this.leases;
  freeSlots = () => 2 - this.leases.length;
  notTakingWork = () => this.reason;
  sitePolicy = () => undefined;
  refusedOffers = () => 3;
  ledger = () => ({ size: 5, trouble: "" });
  ledgerShown = ({ note }: { note: string }) => this.#note(`ledger ${note}`);
  welcomed = () => this.#note("welcomed");
  natsAccess = () => this.#note("nats access");
  cancel = (lease: LeaseKey, reason: string) => this.#note(`cancel ${lease.epoch} ${reason}`);
  superseded = (lease: LeaseKey) => this.#note(`superseded ${lease.epoch}`);
  renewed = () => undefined;
  awaitsGrant = () => false;
  centreTime = () => undefined;
  denied = (reason: string) => this.#note(`denied: ${reason}`);
  cordonRevision = () => 7;
  cordon: AgentSide["cordon"] = (told) => {
    if (told?.cordoned) this.#note(`cordoned ${told.revision} by ${told.by}`);
  };
  #note(text: string): void {
    this.told.push(text);
    until.changed();
  }
}

function open(identity: Partial<Identity> = {}, clock = systemClock): Uplink {
  log = [];
  const write = (line: string): void => {
    log.push(JSON.parse(line));
    until.changed();
  };
  const who = authority.identity(gateway.port, identity);
  signer = loadOrMakeReportSigner(directory.path, who);
  return new Uplink({
    clock,
    random: () => 0,
    log: pino({}, { write }),
    identity: who,
    gateways: new Gateways(`localhost:${gateway.port}`, join(directory.path, "gateways.json")),
    instanceId: "instance-1",
    journal,
    network: openNetwork,
    signer,
    side,
  });
}

beforeAll(async () => {
  authority = await createAuthority();
});
beforeEach(async () => {
  directory = testDirectory();
  journal = new Journal(join(directory.path, "journal"), LIMITS);
  gateway = new TestGateway(authority);
  await gateway.start();
  side = new Side();
  uplink = open();
});
afterEach(async () => {
  await uplink.close("end of test");
  gateway.stop();
  await journal.close();
  directory[Symbol.dispose]();
});

/** As the control plane does it. */
const isSigned = (index: number) => {
  const { reportPublicKey } = gateway.hellos.at(-1)!;
  const { bytes, signature, keyId } = gateway.reports[index]!;
  expect(keyId).toBe(reportKeyId(reportPublicKey));
  return verifyReport(
    readReportKey(reportPublicKey)!,
    "spiffe://insitu.test/env/dream/agent/a1",
    bytes,
    signature,
  );
};
const finish = async (from: number, to = from) => {
  for (let i = from; i <= to; i++) await journal.finish(finished(leaseKey({ runId: `run-${i}` })));
};
const chunk = (bytes = 10) =>
  journal.appendLog(
    {
      lease: leaseKey(),
      firstEntry: 1,
      entryCount: 1,
      encoding: "identity",
      atMs: 1,
      entries: Buffer.alloc(bytes, 1),
      contentBytes: bytes,
    },
    { lastSeq: 1, endOffset: 0, bytes: 0, lostBytes: 0 },
  );
const seqs = () => gateway.reports.map(({ seq }) => seq);
const lost = (reason: RegExp) =>
  until.holds(() =>
    log.some((line) => line.msg.startsWith("control plane lost") && reason.test(line.reason ?? "")),
  );

test("that is refused says so, and does not take a lost connection for it", async () => {
  uplink.start();
  await gateway.connected();
  const metadata = new Metadata();
  metadata.set(ERROR_CODE_METADATA, "conflict");
  gateway.session!.emit("error", {
    code: status.ABORTED,
    details: "a newer session took its place",
    metadata,
  });
  await gateway.connected(2);
  metadata.set(ERROR_CODE_METADATA, "auth.denied");
  gateway.session!.emit("error", { code: status.PERMISSION_DENIED, details: "it was revoked", metadata });
  await until.holds(() => side.told.includes("denied: it was revoked"));
  expect(side.told.filter((said) => said.startsWith("denied"))).toEqual(["denied: it was revoked"]);
  expect(uplink.connected).toBe(false);
});

test("that one replica refuses asks the next one, also where there are two", async () => {
  const other = new TestGateway(authority);
  await other.start();
  const addresses = [gateway, other].map(({ port }) => `localhost:${port}`);
  writeFileSync(join(directory.path, "gateways.json"), JSON.stringify(addresses));
  // A minute's wait is over at once.
  const sleep = (ms: number, signal?: AbortSignal) => systemClock.sleep(Math.min(ms, 10), signal);
  const patient = open({}, { ...systemClock, sleep });
  patient.start();
  await gateway.connected();
  const metadata = new Metadata();
  metadata.set(ERROR_CODE_METADATA, "auth.denied");
  gateway.session!.emit("error", { code: status.PERMISSION_DENIED, details: "not known here", metadata });
  await other.connected();
  expect(gateway.hellos).toHaveLength(1);
  await patient.close("test");
  other.stop();
});

test("signs each report for this agent, with the key that its hello brings and its certificate vouches for", async () => {
  await finish(1, 2);
  uplink.start();
  await gateway.until.holds(() => gateway.reports.length === 2);
  expect([isSigned(0), isSigned(1)]).toEqual([true, true]);
  const { reportPublicKey, reportKeyProof } = gateway.hellos[0]!;
  const message = signedReportKey("spiffe://insitu.test/env/dream/agent/a1", reportPublicKey);
  const { publicKey } = new X509Certificate(authority.identity(0).certificatePem);
  expect(verify("sha256", message, publicKey, reportKeyProof)).toBe(true);
});

test("signs reports that go up together once, for a control plane that takes that, and one that goes alone by itself", async () => {
  const capabilities = [CAPABILITY_REPORT_BATCH];
  gateway.welcome = { version: { major: 1, minor: 0, software: "test", capabilities } };
  await finish(1, 3);
  uplink.start();
  await gateway.until.holds(() => gateway.reports.length === 3);
  const [{ reports, signature, keyId }] = gateway.reportBatches as [ReportBatch__Output];
  const { reportPublicKey } = gateway.hellos.at(-1)!;
  expect(keyId).toBe(reportKeyId(reportPublicKey));
  expect(reports.map((report) => report.signature.length)).toEqual([0, 0, 0]);
  const tree = new BatchTree(reports.map(({ payload }) => leafHash(payload)));
  const agentUri = "spiffe://insitu.test/env/dream/agent/a1";
  for (const [index, { payload }] of reports.entries()) {
    const kept = { signature: signature.toString("base64"), batch: tree.placeOf(index) };
    expect(verifyKept(readReportKey(reportPublicKey)!, agentUri, payload, kept)).toBe(true);
  }
  await finish(4);
  await gateway.until.holds(() => gateway.reports.length === 4);
  expect(gateway.reportBatches.at(-1)!.signature).toHaveLength(0);
  expect(isSigned(3)).toBe(true);
});

test("signs the logs that go up together once, with the key of its reports", async () => {
  await chunk();
  await chunk(20);
  uplink.start();
  await gateway.until.holds(() => gateway.chunks.length === 2);
  const { reportPublicKey } = gateway.hellos.at(-1)!;
  const key = readReportKey(reportPublicKey)!;
  const agentUri = "spiffe://insitu.test/env/dream/agent/a1";
  for (const { chunks, signature, keyId } of gateway.logBatches) {
    expect(keyId).toBe(reportKeyId(reportPublicKey));
    const batch = new BatchTree(chunks.map(logLeaf));
    expect(verifyBatch(key, { purpose: "insitu.logs.v1", agentUri, batch }, signature)).toBe(true);
  }
});

test("says what it is and what it holds, then renews exactly what it holds, with why it takes no work", async () => {
  side.leases = [leaseKey({ epoch: 4 })];
  side.reason = "its disk is nearly full";
  uplink.start();
  await gateway.until.holds(() => gateway.heartbeats.length >= 3);
  expect(gateway.hellos[0]).toMatchObject({
    version: { major: 1 },
    slots: 2,
    executors: ["noop"],
    datasets: ["penguins"],
    labels: { rack: "7" },
    sandbox: {
      boxes: true,
      summary: "bubblewrap 0.8.0",
      held: { memory: "cgroup v2" },
      notHeld: { cpu: "no" },
      unboxedUpTo: "internal",
      letsOut: true,
      runsContainers: true,
    },
    instanceId: "instance-1",
    held: [leaseKey({ epoch: 4 })],
  });
  expect(gateway.heartbeats.slice(0, 3).map(({ seq }) => seq)).toEqual(["1", "2", "3"]);
  expect(gateway.heartbeats[2]).toMatchObject({
    held: [leaseKey({ epoch: 4 })],
    freeSlots: 1,
    notTakingWork: "its disk is nearly full",
  });
});

test("a report is forgotten when it is acknowledged and not before", async () => {
  gateway.ackReports = () => undefined;
  await finish(1, 3);
  uplink.start();
  await gateway.until.holds(() => seqs().length === 3);
  expect(journal.undelivered()).toHaveLength(3);
  gateway.reportCall?.write({ ackedSeq: 2 });
  await gateway.until.holds(() => gateway.heartbeats.length >= 3); // the acknowledgement went out before these
  await vi.waitFor(() => expect(journal.undelivered()).toEqual([leaseKey({ runId: "run-3" })]));
  expect(journal.delivered).toBe(false);
});

test("after the gateway was away everything that is not acknowledged is sent again, in order, from the oldest", async () => {
  gateway.ackReports = () => ({ ackedSeq: 1 });
  await finish(1, 3);
  uplink.start();
  await gateway.until.holds(() => seqs().length === 3);
  await vi.waitFor(() => expect(journal.undelivered()).toHaveLength(2));
  gateway.stop();
  await lost(/./);
  await finish(4);
  gateway.ackReports = (sent) => ({ ackedSeq: sent.at(-1)! });
  gateway.reports.length = 0;
  await gateway.start();
  await gateway.until.holds(() => seqs().includes(4));
  expect(seqs()).toEqual([2, 3, 4]);
  await vi.waitFor(() => expect(journal.delivered).toBe(true));
});

test("a report that is stored while the connection stands goes out at once", async () => {
  uplink.start();
  await gateway.connected();
  await gateway.until.holds(() => gateway.reportCall !== undefined || gateway.heartbeats.length > 0);
  await finish(1);
  await gateway.until.holds(() => seqs().length === 1);
  expect(gateway.reports[0]?.payload).toEqual(finished(leaseKey({ runId: "run-1" })));
});

test("a report that is rejected is told, forgotten and not sent again", async () => {
  gateway.ackReports = ([seq]) => ({
    ackedSeq: seq!,
    rejected: [{ seq: seq!, code: "lease.stale", message: "no" }],
  });
  await finish(1);
  uplink.start();
  await until.holds(() => log.some(({ msg }) => msg.startsWith("report rejected")));
  await vi.waitFor(() => expect(journal.delivered).toBe(true));
  expect(seqs()).toEqual([1]);
});

test("no more than a window is on its way while nothing is acknowledged; all arrives in the end", async () => {
  gateway.ackLogs = () => undefined;
  for (let i = 0; i < 100; i++) await chunk(64 * 1024);
  uplink.start();
  // Reports are not held up by the logs that wait.
  await finish(1);
  await gateway.until.holds(() => seqs().length === 1);
  await gateway.until.holds(() => gateway.chunks.length >= 64);
  await gateway.until.holds(() => gateway.heartbeats.length >= 5);
  const sent = gateway.chunks.length;
  expect(sent * 64 * 1024).toBeLessThanOrEqual(4 * 1024 * 1024 + 512 * 1024);
  gateway.ackLogs = (numbers) => ({ ackedSeq: numbers.at(-1)! });
  gateway.logCall?.write({ ackedSeq: Number(gateway.chunks.at(-1)?.seq) });
  await gateway.until.holds(() => gateway.chunks.length === 100);
  expect(gateway.chunks.map(({ seq }) => Number(seq))).toEqual(Array.from({ length: 100 }, (_, i) => i + 1));
  await vi.waitFor(() => expect(journal.delivered).toBe(true));
});

test("cancels come by message and by heartbeat; superseded leases and cordons too", async () => {
  uplink.start();
  await gateway.connected();
  gateway.session?.write({ cancel: { lease: leaseKey({ epoch: 1 }), reason: "now" } });
  await until.holds(() => side.told.includes("cancel 1 now"));
  gateway.reply = {
    cancels: [{ lease: leaseKey({ epoch: 2 }), reason: "again" }],
    superseded: [leaseKey({ epoch: 3 })],
    cordon: { revision: 5, cordoned: true, by: "ana" },
  };
  await until.holds(() => side.told.includes("cancel 2 again"));
  expect(side.told).toEqual(expect.arrayContaining(["superseded 3", "cordoned 5 by ana"]));
});

test("a connection on which heartbeats are not answered is left for another", async () => {
  gateway.answerHeartbeats = false;
  uplink.start();
  await gateway.connected(2);
  expect(log.map(({ msg }) => msg)).toContain("heartbeats are not answered");
  expect(gateway.hellos.map(({ instanceId }) => instanceId)).toEqual(["instance-1", "instance-1"]);
  // Not streams anew on the old one, on which nothing may pass any more.
  expect(new Set(gateway.peers).size).toBe(2);
});

test("asked to drain, it comes back after the delay that it was given", async () => {
  uplink.start();
  await gateway.connected();
  gateway.session?.write({ drain: { reconnectAfterMs: 20, reason: "upgrade" } });
  await gateway.connected(2);
  expect(log.find(({ msg }) => msg.startsWith("control plane lost"))).toMatchObject({ retryInMs: 20 });
});

test("a control plane of another protocol is named, with what to upgrade", async () => {
  gateway.welcome = { version: { major: 2, minor: 0, software: "future", capabilities: [] } };
  uplink.start();
  await lost(/protocol 2, this agent 1: upgrade this agent/);
  expect(side.told).not.toContain("welcomed");
});

test("a gateway of another CA is told apart from one that is away", async () => {
  const other = await createAuthority();
  uplink = open({ caPem: Buffer.from(other.caPem) });
  uplink.start();
  await lost(/CA of this agent's enrolment did not issue/);
  expect(gateway.hellos).toEqual([]);
});

test("an agent whose certificate has expired says so", async () => {
  gateway.stop();
  uplink = open({ notAfterMs: systemClock.wallMs() - 1 });
  uplink.start();
  await lost(/certificate has expired.*somebody has to approve it/);
});

test("it says goodbye when it stops on purpose", async () => {
  uplink.start();
  await gateway.until.holds(() => gateway.heartbeats.length > 0);
  await uplink.close("SIGTERM");
  await gateway.until.holds(() => gateway.goodbyes.length > 0);
  expect(gateway.goodbyes).toEqual(["SIGTERM"]);
});

test("it stops at once while the gateway is away", async () => {
  gateway.stop();
  uplink.start();
  await lost(/./);
  const fromMs = systemClock.monotonicMs();
  await uplink.close("SIGTERM");
  expect(systemClock.monotonicMs() - fromMs).toBeLessThan(2_000);
});

test("connecting again many times leaves no listener behind", async () => {
  const warnings: string[] = [];
  const onWarning = (warning: Error): void => void warnings.push(warning.name);
  process.on("warning", onWarning);
  uplink.start();
  for (let i = 1; i <= 15; i++) {
    await gateway.connected(i);
    gateway.session?.write({ drain: { reconnectAfterMs: 0, reason: "again" } });
  }
  await gateway.connected(16);
  process.off("warning", onWarning);
  expect(warnings).toEqual([]);
});

test("what the control plane says twice, late or in the wrong order ends no connection and unsays nothing", async () => {
  side.leases = [leaseKey({ epoch: 4 })];
  uplink.start();
  await gateway.until.holds(() => gateway.heartbeats.length >= 2);
  await finish(1, 2);
  await gateway.until.holds(() => seqs().length === 2);
  await vi.waitFor(() => expect(journal.delivered).toBe(true));
  const version = { major: 1, minor: 0, software: "test", capabilities: [] };
  gateway.session?.write({ welcome: { version, heartbeatMs: 30, leaseTtlMs: 1_000, wallMs: 1 } });
  for (const seq of [1, 0, 1]) gateway.session?.write({ heartbeatReply: { seq } });
  for (let times = 0; times < 2; times++) gateway.session?.write({ natsAccess: { stream: "WORK" } });
  for (const ackedSeq of [1, 0, 2, 1]) gateway.reportCall?.write({ ackedSeq });
  const cancel = { lease: leaseKey({ epoch: 3 }), reason: "late" };
  for (let times = 0; times < 2; times++) gateway.session?.write({ cancel });
  await until.holds(() => side.told.filter((text) => text === "cancel 3 late").length === 2);
  const { length } = gateway.heartbeats;
  await finish(3);
  await gateway.until.holds(() => seqs().length === 3 && gateway.heartbeats.length > length + 1);
  expect(seqs()).toEqual([1, 2, 3]);
  expect(side.told.filter((text) => text === "welcomed")).toHaveLength(1);
  expect(gateway.heartbeats.at(-1)?.held).toEqual([leaseKey({ epoch: 4 })]);
  expect(gateway.hellos).toHaveLength(1);
});

test("asked to drain twice, before other words and late on the connection that it has left, it comes back once", async () => {
  uplink.start();
  await gateway.connected();
  const { session } = gateway;
  for (let times = 0; times < 2; times++)
    session?.write({ drain: { reconnectAfterMs: 20, reason: "upgrade" } });
  session?.write({ heartbeatReply: { seq: 1 } });
  await gateway.connected(2);
  session?.write({ drain: { reconnectAfterMs: 20, reason: "upgrade" } });
  const { length } = gateway.heartbeats;
  await gateway.until.holds(() => gateway.heartbeats.length > length + 2);
  expect(gateway.hellos).toHaveLength(2);
});

test("a message that was no offer is told when there is a connection, the newest of many, each once", async () => {
  for (let n = 1; n <= 20; n++) uplink.tellRefused(Buffer.from(`junk ${n}`), "it is not signed");
  uplink.start();
  await gateway.until.holds(() => gateway.refused.length >= 16);
  expect(gateway.refused).toEqual(Array.from({ length: 16 }, (_, n) => `junk ${n + 5}: it is not signed`));
  uplink.tellRefused(Buffer.from("more"), "it is not JSON");
  await gateway.until.holds(() => gateway.refused.at(-1) === "more: it is not JSON");
});
