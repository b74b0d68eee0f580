/** Logs are what their agent signed, where they come in. The attacker is a client with credentials of its own. */
import { generateKeyPairSync, sign } from "node:crypto";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import { type BatchPurpose, BatchTree, signedBatch } from "../../shared/wire/batch-signature.ts";
import type { Ack__Output } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";
import { logLeaf } from "../../shared/wire/log-signature.ts";
import { reportKeyId, signedReportKey } from "../../shared/wire/report-signature.ts";
import { Inbox, openSession, Plane, startWorld, TRUST_DOMAIN, type World } from "./gateway.fixture.ts";
import { LogDoubts } from "./log-doubts.ts";

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

async function joined(on: World = world) {
  const name = `l${++serial}`;
  const identity = await on.join("dream", name);
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const spki = publicKey.export({ type: "spki", format: "der" });
  const uri = agentUri(TRUST_DOMAIN, { environment: "dream", name });
  const proofOf = (key: Buffer) => sign("sha256", signedReportKey(uri, key), identity.keyPem);
  const batch = (chunks: Chunk[], purpose: BatchPurpose = "insitu.logs.v1") => ({
    chunks,
    signature: sign(null, signedBatch(purpose, uri, new BatchTree(chunks.map(logLeaf))), privateKey),
    keyId: reportKeyId(spki),
  });
  return { id: `dream/${name}`, client: on.client(identity), spki, proofOf, batch };
}

async function logging(on: World = world) {
  const agent = await joined(on);
  const announcement = { reportPublicKey: agent.spki, reportKeyProof: agent.proofOf(agent.spki) };
  await openSession(agent.client, announcement);
  return { ...agent, ...logs(agent) };
}

function logs({ client }: Pick<Awaited<ReturnType<typeof joined>>, "client">) {
  const stream = client.Logs();
  return { stream, inbox: new Inbox<Ack__Output>(stream as never) };
}

const chunk = (seq: number, change: Partial<{ runId: string; epoch: number; firstEntry: number }> = {}) => ({
  seq,
  runId: "r1",
  stepId: "load",
  attempt: 1,
  epoch: 1,
  firstEntry: seq,
  entryCount: 1,
  encoding: "identity",
  entries: Buffer.from(`entries ${seq}`),
  ...change,
});
type Chunk = ReturnType<typeof chunk>;
const three = [chunk(1), chunk(2), chunk(3)];

test("a batch of logs that its agent signed is taken, and each chunk has what verifies it alone, for any replica", async () => {
  const { id, batch, stream, inbox } = await logging();
  stream.write(batch(three));
  await inbox.find((ack) => ack.ackedSeq === "3");
  const stored = world.plane.chunks.map(({ chunk: { seq: _, signed, ...rest } }) => ({ ...rest, signed }));
  expect(stored.map(({ signed }) => signed)).toMatchObject(
    [0, 1, 2].map((index) => ({ agent: id, batch: { index, size: 3 } })),
  );
  const doubtOf = new LogDoubts({
    keys: world.reportKeysOf(),
    grantsOf: () => [{ step: "load", epoch: 1, environment: "dream", agent: id, startedAtMs: 1 }],
    wasGranted: () => Promise.resolve(false),
    agentsOf: () => [id],
  }).of("r1");
  for (const one of stored) expect(await doubtOf(one)).toBeUndefined();
  expect(await doubtOf({ ...stored[0]!, entries: Buffer.from("lie") })).toContain("not what");
  // A name that was enrolled anew still has what its former holder signed.
  await world.registry.revoke(id, { by: "test", reason: "" });
  const next = await world.join("dream", id.slice("dream/".length));
  expect(next.certificatePem).not.toBe("");
  expect((await world.registry.stored(id))?.reportKeys).toEqual([]);
  for (const one of stored) expect(await doubtOf(one)).toBeUndefined();
  stream.end();
});

type Signed = ReturnType<Awaited<ReturnType<typeof logging>>["batch"]>;
const altered: [string, (signed: Signed, agent: Awaited<ReturnType<typeof logging>>) => Signed, string][] = [
  ["not signed", (signed) => ({ ...signed, signature: Buffer.alloc(0) }), "log.unsigned"],
  [
    "with other text",
    (signed) => ({ ...signed, chunks: [{ ...chunk(1), entries: Buffer.from("lie") }, ...three.slice(1)] }),
    "log.forged",
  ],
  [
    "for another run",
    (signed) => ({ ...signed, chunks: [chunk(1, { runId: "r2" }), ...three.slice(1)] }),
    "log.forged",
  ],
  [
    "under another epoch",
    (signed) => ({ ...signed, chunks: [chunk(1, { epoch: 2 }), ...three.slice(1)] }),
    "log.forged",
  ],
  [
    "of other entries",
    (signed) => ({ ...signed, chunks: [chunk(1, { firstEntry: 7 }), ...three.slice(1)] }),
    "log.forged",
  ],
  ["with a chunk less", (signed) => ({ ...signed, chunks: three.slice(0, 2) }), "log.forged"],
  ["signed as reports", (_, { batch }) => batch(three, "insitu.reports.v1"), "log.forged"],
  ["under a key that nobody announced", (signed) => ({ ...signed, keyId: "0".repeat(64) }), "log.forged"],
];
test.each(altered)("a batch of logs %s is refused for good and kept aside", async (_, change, code) => {
  const agent = await logging();
  const { id, batch, stream, inbox } = agent;
  const changed = change(batch(three), agent);
  stream.write(changed);
  await inbox.find((ack) => ack.ackedSeq === String(changed.chunks.length));
  const rejected = inbox.all.flatMap((ack) => ack.rejected);
  expect(rejected.map((one) => one.code)).toEqual(changed.chunks.map(() => code));
  expect(world.plane.chunks).toEqual([]);
  expect((await world.poison.list()).filter(({ from }) => from === id)).toHaveLength(changed.chunks.length);
  stream.end();
});

test("logs of an agent cannot be sent by another one that announces its key", async () => {
  const victim = await logging();
  const thief = await joined();
  await openSession(thief.client, {
    reportPublicKey: victim.spki,
    reportKeyProof: thief.proofOf(victim.spki),
  });
  const { stream, inbox } = logs(thief);
  stream.write(victim.batch(three));
  await inbox.find((ack) => ack.ackedSeq === "3");
  expect(inbox.all.flatMap((ack) => ack.rejected)).toHaveLength(3);
  expect(world.plane.chunks).toEqual([]);
  stream.end();
  victim.stream.end();
});

test("unsigned logs are taken of an agent that never signed, but not by a server that requires signatures", async () => {
  const strict = await startWorld({ requireSignedReports: true });
  try {
    for (const on of [world, strict]) {
      const { stream, inbox } = logs(await joined(on));
      stream.write({ chunks: [chunk(1)] });
      await inbox.find((ack) => ack.ackedSeq === "1");
      const rejected = inbox.all.flatMap((ack) => ack.rejected);
      expect(rejected.map(({ code }) => code)).toEqual(on === strict ? ["log.unsigned"] : []);
      stream.end();
    }
  } finally {
    await strict.stop();
  }
  expect(world.plane.chunks.map(({ chunk: { signed } }) => signed)).toEqual([undefined]);
});
