/** Reports are what their agent signed. The attacker is a client with credentials of its own, or whoever runs the store. */
import { generateKeyPairSync, type KeyObject, sign, X509Certificate } from "node:crypto";
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import { leafHash } from "../../shared/provenance/merkle.ts";
import { systemClock } from "../../shared/system.ts";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import type { ReportPayload } from "../../shared/wire/attempt.ts";
import { type BatchPurpose, BatchTree, signedBatch } from "../../shared/wire/batch-signature.ts";
import type { Ack__Output } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";
import {
  readReportKey,
  reportBytes,
  reportKeyId,
  signedReport,
  signedReportKey,
  verifyKept,
} from "../../shared/wire/report-signature.ts";
import type { ReportKey } from "../fleet/agent-record.ts";
import { type AgentRegistry, REPORT_KEYS_MAX } from "../fleet/agent-registry.ts";
import type { InboxItem } from "../shards/ports.ts";
import {
  hello,
  Inbox,
  type Keys,
  lease,
  newKeys,
  openSession,
  Plane,
  startWorld,
  TRUST_DOMAIN,
  type World,
} from "./gateway.fixture.ts";
import { inspectPeer } from "./peer-identity.ts";

let world: World;
let serial = 0;
beforeAll(async () => {
  world = await startWorld();
});
beforeEach(() => {
  Object.assign(world.plane, new Plane());
});
afterAll(async () => {
  await world?.stop();
});

/** What an agent signs with, made by hand. */
function signer(environment: string, name: string, tls: Pick<Keys, "keyPem">) {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const spki = publicKey.export({ type: "spki", format: "der" });
  const uri = agentUri(TRUST_DOMAIN, { environment, name });
  return {
    spki,
    uri,
    keyId: reportKeyId(spki),
    announcement: {
      reportPublicKey: spki,
      reportKeyProof: sign("sha256", signedReportKey(uri, spki), tls.keyPem),
    },
    privateKey,
    report: (seq: number, payload: ReportPayload | string) => {
      const bytes = Buffer.from(typeof payload === "string" ? payload : JSON.stringify(payload));
      const signature = sign(null, signedReport(uri, bytes), privateKey);
      return { seq, payload: bytes, signature, keyId: reportKeyId(spki) };
    },
    batch: (
      payloads: (ReportPayload | string)[],
      purpose: BatchPurpose = "insitu.reports.v1",
      firstSeq = 1,
    ) => {
      const reports = payloads.map((payload, i) => ({
        seq: firstSeq + i,
        payload: Buffer.from(typeof payload === "string" ? payload : JSON.stringify(payload)),
      }));
      const tree = new BatchTree(reports.map(({ payload }) => leafHash(payload)));
      const signature = sign(null, signedBatch(purpose, uri, tree), privateKey);
      return { reports, signature, keyId: reportKeyId(spki) };
    },
  };
}

async function joined(environment = "dream", on = world) {
  const name = `s${++serial}`;
  const identity = await on.join(environment, name);
  const client = on.client(identity);
  return { id: `${environment}/${name}`, client, signs: signer(environment, name, identity), identity };
}

/** In a session that has announced its key, with reports open. */
async function reporting(environment = "dream") {
  const agent = await joined(environment);
  const { stream: session } = await openSession(agent.client, agent.signs.announcement);
  const stream = agent.client.Report();
  return { ...agent, session, stream, inbox: new Inbox<Ack__Output>(stream as never) };
}

const started = (runId: string): ReportPayload => ({ kind: "started", lease: lease(runId), atMs: 5 });
const overPurpose = (key: KeyObject, text: string, payload: Buffer) =>
  sign(null, Buffer.concat([Buffer.from(text), payload]), key);

describe("a report", () => {
  test("that its agent signed is taken, with the signature beside it, and the fleet shows that it signs", async () => {
    const { id, signs, stream, inbox } = await reporting();
    stream.write({ reports: [signs.report(1, started("r1"))] });
    expect(await inbox.find((ack) => ack)).toMatchObject({ ackedSeq: "1", rejected: [] });
    const signature = signs.report(1, started("r1")).signature.toString("base64");
    expect(world.plane.reports).toEqual([
      { agent: id, report: started("r1"), signed: { keyId: signs.keyId, signature } },
    ]);
    expect(world.fleet.get(id)).toMatchObject({
      reports: "signed",
      refusedReports: { unsigned: 0, forged: 0 },
    });
    stream.end();
  });

  test("whose bytes cannot be written again from what they say is taken with its bytes", async () => {
    const { signs, stream, inbox } = await reporting();
    const payload = JSON.stringify(started("r1"), null, 1);
    stream.write({ reports: [signs.report(1, payload)] });
    await inbox.find((ack) => ack);
    expect(world.plane.reports[0]?.signed?.payload).toBe(payload);
    stream.end();
  });

  const forgeries: [string, (signs: ReturnType<typeof signer>) => object, "unsigned" | "forged"][] = [
    [
      "without a signature",
      (signs) => ({ ...signs.report(1, started("r1")), signature: Buffer.alloc(0) }),
      "unsigned",
    ],
    [
      "changed on its way",
      (signs) => ({ ...signs.report(1, started("r1")), payload: Buffer.from(JSON.stringify(started("r2"))) }),
      "forged",
    ],
    [
      "that was signed for another lease",
      (signs) => ({
        ...signs.report(1, started("r1")),
        payload: Buffer.from(JSON.stringify({ ...started("r1"), lease: lease("r1", 2) })),
      }),
      "forged",
    ],
    [
      "with a signature for another purpose",
      (signs) => {
        const report = signs.report(1, started("r1"));
        const signature = overPurpose(signs.privateKey, `insitu.log.v1\0${signs.uri}\0`, report.payload);
        return { ...report, signature };
      },
      "forged",
    ],
    [
      "with a signature that names no purpose",
      (signs) => {
        const report = signs.report(1, started("r1"));
        return { ...report, signature: sign(null, report.payload, signs.privateKey) };
      },
      "forged",
    ],
    [
      "signed with a key that was never announced",
      () => {
        const { privateKey } = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
        const keyPem = String(privateKey.export({ type: "pkcs8", format: "pem" }));
        return signer("dream", "stranger", { keyPem }).report(1, started("r1"));
      },
      "forged",
    ],
    ["that names no key", (signs) => ({ ...signs.report(1, started("r1")), keyId: "" }), "forged"],
  ];
  test.each(forgeries)("%s is refused for good, kept aside and counted", async (_, forge, kind) => {
    const { id, signs, stream, inbox } = await reporting();
    stream.write({ reports: [{ ...forge(signs), seq: 1 }, signs.report(2, started("good"))] });
    await inbox.find((ack) => ack.ackedSeq === "2");
    const rejected = inbox.all.flatMap((ack) => ack.rejected);
    expect(rejected).toMatchObject([{ seq: "1", code: `report.${kind}` }]);
    expect(world.plane.reports.map(({ report }) => report.lease.runId)).toEqual(["good"]);
    expect(world.fleet.get(id)?.refusedReports).toEqual({ unsigned: 0, forged: 0, [kind]: 1 });
    expect((await world.poison.list()).filter(({ from }) => from === id)).toMatchObject([
      { source: "gateway", subject: "report" },
    ]);
    stream.end();
  });

  test("of an agent cannot be sent by another one, of its site or not, whatever key that one announces", async () => {
    const victim = await reporting();
    const captured = victim.signs.report(1, started("r1"));
    for (const environment of ["dream", "biscoe"]) {
      const thief = await joined(environment);
      // It vouches for the victim's public key, of which it does not have the private one.
      const proof = sign(
        "sha256",
        signedReportKey(thief.signs.uri, victim.signs.spki),
        thief.identity.keyPem,
      );
      await openSession(thief.client, { reportPublicKey: victim.signs.spki, reportKeyProof: proof });
      const stream = thief.client.Report();
      const inbox = new Inbox<Ack__Output>(stream as never);
      stream.write({ reports: [captured] });
      expect((await inbox.find((ack) => ack)).rejected).toMatchObject([{ code: "report.forged" }]);
      stream.end();
    }
    expect(world.plane.reports).toEqual([]);
    victim.stream.end();
  });

  test("is taken under a former key of its agent and under its new one, but not once the agent was revoked", async () => {
    const { id, client, signs, identity } = await joined();
    await openSession(client, signs.announcement);
    const [environment = "", name = ""] = id.split("/");
    const next = signer(environment, name, identity);
    await openSession(client, next.announcement);
    const stream = client.Report();
    const inbox = new Inbox<Ack__Output>(stream as never);
    stream.write({ reports: [signs.report(1, started("r1")), next.report(2, started("r2"))] });
    await inbox.find((ack) => ack.ackedSeq === "2");
    expect(world.plane.reports.map(({ signed }) => signed?.keyId)).toEqual([signs.keyId, next.keyId]);
    await world.registry.revoke(id, { by: "test", reason: "" });
    const again = new Inbox<Ack__Output>(client.Report() as never);
    expect((await again.end())?.code).toBe(status.PERMISSION_DENIED);
    await world.enrolWith(await world.token(environment), name, await newKeys());
    expect((await world.registry.stored(id))?.reportKeys).toEqual([]);
  });
});

describe("a batch of reports under one signature", () => {
  const five = [1, 2, 3, 4, 5].map((n) => started(`r${n}`));

  test("is taken, and each of its reports has what verifies it alone", async () => {
    const { signs, stream, inbox } = await reporting();
    const batch = signs.batch(five);
    stream.write(batch);
    await inbox.find((ack) => ack.ackedSeq === "5");
    const key = readReportKey(signs.spki)!;
    expect(world.plane.reports.map(({ report }) => report)).toEqual(five);
    for (const [index, { report, signed }] of world.plane.reports.entries()) {
      expect(signed).toMatchObject({ keyId: signs.keyId, batch: { index, size: 5 } });
      expect(verifyKept(key, signs.uri, reportBytes(report), signed!)).toBe(true);
      expect(verifyKept(key, signs.uri, reportBytes(started("other")), signed!)).toBe(false);
      const moved = { ...signed!, batch: { ...signed!.batch!, index: (index + 1) % 5 } };
      expect(verifyKept(key, signs.uri, reportBytes(report), moved)).toBe(false);
    }
    stream.end();
  });

  test("loses only the report in it that is none", async () => {
    const { signs, stream, inbox } = await reporting();
    stream.write(signs.batch([five[0]!, "no report", five[2]!]));
    await inbox.find((ack) => ack.ackedSeq === "3");
    expect(inbox.all.flatMap((ack) => ack.rejected)).toMatchObject([{ seq: "2", code: "request.invalid" }]);
    expect(world.plane.reports.map(({ report }) => report)).toEqual([five[0], five[2]]);
    stream.end();
  });

  type Batch = ReturnType<ReturnType<typeof signer>["batch"]>;
  const altered: [string, (batch: Batch, signs: ReturnType<typeof signer>) => object][] = [
    [
      "with a report changed",
      (batch) => {
        const payload = Buffer.from(JSON.stringify(started("r9")));
        return { ...batch, reports: [{ seq: 1, payload }, ...batch.reports.slice(1)] };
      },
    ],
    [
      "with a report under another lease",
      (batch) => {
        const payload = Buffer.from(JSON.stringify({ ...five[0], lease: lease("r1", 2) }));
        return { ...batch, reports: [{ seq: 1, payload }, ...batch.reports.slice(1)] };
      },
    ],
    ["with a report less", (batch) => ({ ...batch, reports: batch.reports.slice(0, -1) })],
    [
      "in another order",
      (batch) => {
        const payloads = batch.reports.map(({ payload }) => payload).reverse();
        return { ...batch, reports: batch.reports.map(({ seq }, i) => ({ seq, payload: payloads[i]! })) };
      },
    ],
    ["signed for another purpose", (_, signs) => signs.batch(five, "insitu.logs.v1")],
    ["that names no key", (batch) => ({ ...batch, keyId: "" })],
    [
      "under the signature of a report",
      (batch, signs) => ({ ...batch, signature: signs.report(1, five[0]!).signature }),
    ],
  ];
  test.each(altered)("%s is refused as a whole, kept aside and counted", async (_, change) => {
    const { id, signs, stream, inbox } = await reporting();
    const changed = change(signs.batch(five), signs) as Batch;
    const count = changed.reports.length;
    stream.write(changed);
    await inbox.find((ack) => ack.ackedSeq === String(count));
    const rejected = inbox.all.flatMap((ack) => ack.rejected);
    expect(rejected.map(({ code }) => code)).toEqual(changed.reports.map(() => "report.forged"));
    expect(world.plane.reports).toEqual([]);
    expect(world.fleet.get(id)?.refusedReports).toEqual({ unsigned: 0, forged: count });
    expect((await world.poison.list()).filter(({ from }) => from === id)).toHaveLength(count);
    stream.end();
  });

  test("of an agent cannot be sent by another one, whatever key that one announces", async () => {
    const victim = await reporting();
    const captured = victim.signs.batch(five);
    const thief = await joined("dream");
    const proof = sign("sha256", signedReportKey(thief.signs.uri, victim.signs.spki), thief.identity.keyPem);
    await openSession(thief.client, { reportPublicKey: victim.signs.spki, reportKeyProof: proof });
    const stream = thief.client.Report();
    const inbox = new Inbox<Ack__Output>(stream as never);
    stream.write(captured);
    await inbox.find((ack) => ack.ackedSeq === "5");
    expect(inbox.all.flatMap((ack) => ack.rejected)).toHaveLength(5);
    expect(world.plane.reports).toEqual([]);
    stream.end();
    victim.stream.end();
  });
});

describe("a hello", () => {
  test.each([
    [
      "of another key",
      (s: ReturnType<typeof signer>, t: Keys) => sign("sha256", Buffer.from(s.spki), t.keyPem),
    ],
    [
      "by the key itself",
      (s: ReturnType<typeof signer>) => sign(null, signedReportKey(s.uri, s.spki), s.privateKey),
    ],
    ["that is empty", () => Buffer.alloc(0)],
  ])("with a proof %s is refused, and its key signs nothing", async (_, proof) => {
    const { id, client, signs, identity } = await joined();
    const session = client.Session();
    const inbox = new Inbox<never>(session as never);
    session.write(hello({ reportPublicKey: signs.spki, reportKeyProof: proof(signs, identity) }));
    expect(await inbox.end()).toMatchObject({ code: status.PERMISSION_DENIED });
    expect((await world.registry.stored(id))?.reportKeys).toEqual([]);
  });

  test("without a key is refused once the agent has signed: it keeps its reports instead of losing them", async () => {
    const { client, signs, session } = await reporting();
    const ended = new Inbox<never>(session as never).end();
    session.end();
    await ended;
    await expect.poll(() => world.registry.known(`dream/s${serial}`)?.reportKeys.length).toBe(1);
    await expect(openSession(client)).rejects.toThrow("has signed its reports");
    const { stream } = await openSession(client, signs.announcement);
    stream.end();
  });

  test("with a key too many is refused in words, and all of the keys before it sign", async () => {
    const { id, client, identity } = await joined();
    const [environment = "", name = ""] = id.split("/");
    for (let keys = 1; keys <= REPORT_KEYS_MAX; keys++) {
      const { stream } = await openSession(client, signer(environment, name, identity).announcement);
      await expect.poll(() => world.registry.known(id)?.reportKeys.length).toBe(keys);
      stream.end();
    }
    const { announcement } = signer(environment, name, identity);
    await expect(openSession(client, announcement)).rejects.toThrow("revoke it and join it anew");
    expect((await world.registry.stored(id))?.reportKeys).toHaveLength(REPORT_KEYS_MAX);
  });

  test("whose key the store could not take yet loses no report: signed or not, it is neither taken nor refused", async () => {
    const { id, identity, signs } = await joined();
    const record = (await world.registry.stored(id))!;
    const away = new InsituError("store.unavailable", "away", { retryable: true });
    let storeIsAway = true;
    const registry = {
      known: () => record,
      stored: async () => record,
      addReportKey: async (_id: string, _spki: string, key: ReportKey) => {
        if (storeIsAway) throw away;
        return { ...record, reportKeys: [key] };
      },
    } as Partial<AgentRegistry> as AgentRegistry;
    const keys = world.reportKeysOf(false, registry);
    const verdict = inspectPeer(new X509Certificate(identity.certificatePem).raw, {
      trustDomain: TRUST_DOMAIN,
      nowMs: systemClock.wallMs(),
    });
    if (!verdict.ok) throw new Error(verdict.fault);
    const { reportPublicKey: publicKey, reportKeyProof: proof } = signs.announcement;
    keys.announce(verdict.peer, { publicKey, proof });
    const report = signs.report(1, started("r1"));
    const unsigned = { ...report, signature: Buffer.alloc(0), keyId: "" };
    for (const sent of [report, unsigned])
      await expect(keys.check(id, sent)).rejects.toMatchObject({
        code: "store.unavailable",
        retryable: true,
      });
    storeIsAway = false;
    await expect(keys.check(id, report)).resolves.toMatchObject({ keyId: signs.keyId });
    await expect(keys.check(id, unsigned)).rejects.toMatchObject({ code: "report.unsigned" });
  });

  test("without a key, of an agent that never signed, is let in, and its reports are shown as not signed", async () => {
    const { id, client } = await joined();
    const { stream: session } = await openSession(client);
    const stream = client.Report();
    const inbox = new Inbox<Ack__Output>(stream as never);
    stream.write({ reports: [{ seq: 1, payload: Buffer.from(JSON.stringify(started("r1"))) }] });
    expect(await inbox.find((ack) => ack)).toMatchObject({ ackedSeq: "1", rejected: [] });
    expect(world.fleet.get(id)?.reports).toBe("unsigned");
    session.end();
    stream.end();
  });
});

describe("a server that requires signed reports", () => {
  let strict: World;
  beforeAll(async () => {
    strict = await startWorld({ requireSignedReports: true });
  });
  afterAll(async () => {
    await strict?.stop();
  });

  test("takes neither a session without a key nor an unsigned report without a session", async () => {
    const { id, client, signs } = await joined("dream", strict);
    await expect(openSession(client)).rejects.toThrow("upgrade the agent");
    const stream = client.Report();
    const inbox = new Inbox<Ack__Output>(stream as never);
    stream.write({ reports: [{ seq: 1, payload: Buffer.from(JSON.stringify(started("r1"))) }] });
    expect((await inbox.find((ack) => ack)).rejected).toMatchObject([{ code: "report.unsigned" }]);
    expect(strict.fleet.get(id)?.refusedReports).toEqual({ unsigned: 1, forged: 0 });
    stream.end();
    const { stream: session } = await openSession(client, signs.announcement);
    session.end();
  });
});

describe("what the store gives back", () => {
  async function stored() {
    const { id, signs, stream, inbox } = await reporting();
    stream.write({ reports: [signs.report(1, started("r1"))] });
    await inbox.find((ack) => ack);
    stream.end();
    const [taken] = world.plane.reports;
    const item: InboxItem = { agent: id, report: taken!.report, signed: taken!.signed };
    // Another replica, which knows of the agent what the store says.
    return { id, item, keys: world.reportKeysOf(), signs };
  }

  test("is believed as it was signed", async () => {
    const { item, keys } = await stored();
    await expect(keys.checkStored(item)).resolves.toBeUndefined();
  });

  async function storedOfBatch() {
    const { id, signs, stream, inbox } = await reporting();
    stream.write(signs.batch([started("r1"), started("r2"), started("r3")]));
    await inbox.find((ack) => ack.ackedSeq === "3");
    stream.end();
    const items = world.plane.reports.map(({ report, signed }): InboxItem => ({ agent: id, report, signed }));
    return { id, items, keys: world.reportKeysOf() };
  }

  test("of a batch is believed report by report, in any order and twice", async () => {
    const { items, keys } = await storedOfBatch();
    for (const item of [...items].reverse()) await expect(keys.checkStored(item)).resolves.toBeUndefined();
    await expect(keys.checkStored(items[1]!)).resolves.toBeUndefined();
  });

  test.each([
    ["the place of another report", (a: InboxItem, b: InboxItem) => ({ ...a, signed: b.signed })],
    [
      "another index",
      (a: InboxItem) => ({ ...a, signed: { ...a.signed!, batch: { ...a.signed!.batch!, index: 1 } } }),
    ],
    [
      "another size",
      (a: InboxItem) => ({ ...a, signed: { ...a.signed!, batch: { ...a.signed!.batch!, size: 4 } } }),
    ],
    [
      "no path",
      (a: InboxItem) => ({ ...a, signed: { ...a.signed!, batch: { ...a.signed!.batch!, path: "" } } }),
    ],
    ["no place", (a: InboxItem) => ({ ...a, signed: { ...a.signed!, batch: undefined } })],
    ["another report", (a: InboxItem) => ({ ...a, report: started("r9") })],
  ])("of a batch with %s is refused, also when the batch is known", async (_, change) => {
    const { items, keys } = await storedOfBatch();
    for (const item of items) await keys.checkStored(item);
    const changed = change(items[0]!, items[1]!);
    await expect(keys.checkStored(changed)).rejects.toMatchObject({ code: "report.forged" });
  });

  test("of a batch of another agent is refused", async () => {
    const { items, keys } = await storedOfBatch();
    const other = await joined();
    await openSession(other.client, other.signs.announcement);
    const changed = { ...items[0]!, agent: other.id };
    await expect(keys.checkStored(changed)).rejects.toMatchObject({ code: "report.forged" });
  });

  test.each([
    [
      "a changed report",
      (item: InboxItem): InboxItem => ({ ...item, report: started("r2") }),
      "report.forged",
    ],
    ["no signature", ({ agent, report }: InboxItem): InboxItem => ({ agent, report }), "report.unsigned"],
    [
      "the signed bytes beside another report",
      ({ agent, report, signed }: InboxItem): InboxItem => ({
        agent,
        report: started("r2"),
        signed: { ...signed!, payload: Buffer.from(reportBytes(report)).toString() },
      }),
      "report.forged",
    ],
  ])("with %s is refused", async (_, change, code) => {
    const { item, keys } = await stored();
    await expect(keys.checkStored(change(item))).rejects.toMatchObject({ code, retryable: false });
  });

  test("with a key that the store itself has put into the agent's record is refused", async () => {
    const { id, item, keys, signs } = await stored();
    const [environment = "", name = ""] = id.split("/");
    const own = generateKeyPairSync("ec", { namedCurve: "prime256v1" }).privateKey;
    const forged = signer(environment, name, {
      keyPem: String(own.export({ type: "pkcs8", format: "pem" })),
    });
    const record = (await world.registry.stored(id))!;
    await world.registry.addReportKey(id, record.spkiSha256, {
      ...record.reportKeys.find((key) => key.id === signs.keyId)!, // with a true certificate of the agent
      id: forged.keyId,
      publicKey: forged.spki.toString("base64"),
      proof: forged.announcement.reportKeyProof.toString("base64"),
    });
    const { signature } = forged.report(1, started("r2"));
    const signed = { keyId: forged.keyId, signature: signature.toString("base64") };
    await expect(keys.checkStored({ ...item, report: started("r2"), signed })).rejects.toMatchObject({
      code: "report.forged",
    });
  });
});
