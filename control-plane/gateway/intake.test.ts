/** Reports and logs over real TLS: acknowledged when durable, in order; what is malformed is set aside. */
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import type { ReportPayload } from "../../shared/wire/attempt.ts";
import type { Ack__Output } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";
import { REPORT_MAX_BYTES } from "../../shared/wire/protocol.ts";
import { heartbeat, Inbox, lease, openSession, Plane, startWorld, type World } from "./gateway.fixture.ts";

const IN_FLIGHT_MAX_BYTES = 256 * 1024;
let world: World;
let serial = 0;
beforeAll(async () => {
  world = await startWorld({ inFlightMaxBytes: IN_FLIGHT_MAX_BYTES });
});
beforeEach(() => {
  Object.assign(world.plane, new Plane());
});
afterAll(async () => {
  await world?.stop();
});

async function joined() {
  const name = `i${++serial}`;
  return { id: `dream/${name}`, client: world.client(await world.join("dream", name)) };
}

async function reporting() {
  const agent = await joined();
  const stream = agent.client.Report();
  return { ...agent, stream, inbox: new Inbox<Ack__Output>(stream as never) };
}

async function logging() {
  const agent = await joined();
  const stream = agent.client.Logs();
  return { ...agent, stream, inbox: new Inbox<Ack__Output>(stream as never) };
}

const started = (runId: string): ReportPayload => ({ kind: "started", lease: lease(runId), atMs: 5 });
const report = (seq: number, payload: unknown = started(`r${seq}`)) => ({
  seq,
  payload: Buffer.from(typeof payload === "string" ? payload : JSON.stringify(payload)),
});
const chunk = (seq: number, changes: object = {}) => ({
  seq,
  runId: "r1",
  stepId: "fit",
  attempt: 1,
  epoch: 1,
  firstEntry: seq,
  entryCount: 1,
  encoding: "identity",
  entries: Buffer.from([seq % 256, 0, 255]),
  ...changes,
});

/** Something that others wait for, to be let go from outside. */
function gate() {
  let open: () => void = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { release: () => open(), opened };
}

describe("reports", () => {
  test("are acknowledged up to the last that is durable with all before it, though they end out of order", async () => {
    const gates = new Map([1, 2, 3].map((n) => [`r${n}`, gate()]));
    const allCame = gate();
    world.plane.onReport = async (r) => {
      if (world.plane.reports.length === 3) allCame.release();
      await gates.get(r.lease.runId)!.opened;
      return { accepted: true };
    };
    const { id, stream, inbox } = await reporting();
    stream.write({ reports: [report(1), report(2), report(3)] });
    await allCame.opened; // side by side: all three are being stored
    expect(world.plane.reports.map((r) => [r.agent, r.report.lease.runId])).toEqual([
      [id, "r1"],
      [id, "r2"],
      [id, "r3"],
    ]);
    gates.get("r3")!.release();
    gates.get("r1")!.release();
    expect((await inbox.find((a) => a)).ackedSeq).toBe("1");
    gates.get("r2")!.release();
    await inbox.find((a) => a.ackedSeq === "3");
    expect(inbox.all.map((a) => a.ackedSeq)).toEqual(["1", "3"]);
    stream.end();
    expect(await inbox.end()).toBeUndefined();
  });

  test.each([
    ["not JSON", "{"],
    ["not UTF-8", Buffer.from([0x22, 0xff, 0x22])],
    ["another shape", { kind: "started" }],
    ["an unknown kind", { ...started("r"), kind: "teleported" }],
    ["a run id that would mean something in a subject", started("r.*")],
    ["nothing", ""],
  ])("of %s are set aside, and those beside them are kept", async (_, payload) => {
    const { stream, inbox } = await reporting();
    const bad = Buffer.isBuffer(payload) ? { seq: 8, payload } : report(8, payload);
    stream.write({ reports: [report(7), bad, report(9)] });
    const last = await inbox.find((a) => a.ackedSeq === "9");
    expect(last).toBeDefined();
    const rejected = inbox.all.flatMap((a) => a.rejected);
    expect(rejected).toMatchObject([{ seq: "8", code: "request.invalid" }]);
    expect(world.plane.reports.map((r) => r.report.lease.runId)).toEqual(["r7", "r9"]);
    stream.end();
  });

  test("larger than the limit are set aside with that reason", async () => {
    const { stream, inbox } = await reporting();
    stream.write({ reports: [{ seq: 1, payload: Buffer.alloc(REPORT_MAX_BYTES + 1, 0x20) }] });
    const ack = await inbox.find((a) => a);
    expect(ack).toMatchObject({ ackedSeq: "1", rejected: [{ seq: "1", code: "request.too-large" }] });
    stream.end();
  });

  test("that are refused for good, by verdict or by error, count as done", async () => {
    world.plane.onReport = async (r) => {
      if (r.lease.runId === "r1") return { accepted: false, code: "lease.stale", message: "not yours" };
      if (r.lease.runId === "r2") throw new InsituError("auth.denied", "of another environment");
      return { accepted: true };
    };
    const { stream, inbox } = await reporting();
    stream.write({ reports: [report(1), report(2), report(3)] });
    await inbox.find((a) => a.ackedSeq === "3");
    expect(inbox.all.flatMap((a) => a.rejected)).toEqual([
      { seq: "1", code: "lease.stale", message: "not yours" },
      { seq: "2", code: "auth.denied", message: "of another environment" },
    ]);
    stream.end();
  });

  test("that cannot be stored now are not acknowledged, and get through on the next stream", async () => {
    let down = true;
    world.plane.onReport = async (r) => {
      if (down && r.lease.runId === "r2")
        throw new InsituError("store.unavailable", "no NATS", { retryable: true });
      return { accepted: true };
    };
    const { client, stream, inbox } = await reporting();
    stream.write({ reports: [report(1), report(2), report(3)] });
    expect(await inbox.end()).toMatchObject({
      code: status.UNAVAILABLE,
      details: expect.stringMatching(/again/),
    });
    expect(inbox.all.every((a) => a.ackedSeq === "1")).toBe(true);
    down = false;
    const next = client.Report();
    const answers = new Inbox<Ack__Output>(next as never);
    next.write({ reports: [report(2), report(3)] });
    await answers.find((a) => a.ackedSeq === "3");
    next.end();
  });

  test("with a broken sink end the stream, not the server", async () => {
    world.plane.onReport = () => {
      throw new TypeError("a bug");
    };
    const { client, stream, inbox } = await reporting();
    stream.write({ reports: [report(1)] });
    expect(await inbox.end()).toMatchObject({ code: status.UNAVAILABLE });
    Object.assign(world.plane, new Plane());
    const next = client.Report();
    const answers = new Inbox<Ack__Output>(next as never);
    next.write({ reports: [report(1)] });
    await answers.find((a) => a.ackedSeq === "1");
    next.end();
  });

  test("numbered with something that is no sequence end the stream", async () => {
    const { stream, inbox } = await reporting();
    stream.write({ reports: [{ seq: "0", payload: Buffer.from("{}") }] });
    expect(await inbox.end()).toMatchObject({ code: status.INVALID_ARGUMENT });
  });

  test("that are still being stored when the agent stops writing are acknowledged before the stream ends", async () => {
    const held = gate();
    const came = gate();
    world.plane.onReport = async () => {
      came.release();
      await held.opened;
      return { accepted: true };
    };
    const { stream, inbox } = await reporting();
    stream.write({ reports: [report(1)] });
    stream.end();
    await came.opened;
    held.release();
    expect(await inbox.end()).toBeUndefined();
    expect(inbox.all.map((a) => a.ackedSeq)).toEqual(["1"]);
  });

  test("on a newer stream of the same agent end the older one", async () => {
    const { client, stream, inbox } = await reporting();
    stream.write({ reports: [report(1)] });
    await inbox.find((a) => a);
    const next = client.Report();
    const answers = new Inbox<Ack__Output>(next as never);
    next.write({ reports: [report(2)] });
    await answers.find((a) => a.ackedSeq === "2");
    expect(await inbox.end()).toMatchObject({ code: status.ABORTED });
    next.end();
  });
});

describe("logs", () => {
  test("arrive as they were sent, and are acknowledged when durable", async () => {
    const { id, stream, inbox } = await logging();
    stream.write({ chunks: [chunk(3), chunk(4, { encoding: "gzip" })] });
    await inbox.find((a) => a.ackedSeq === "4");
    expect(world.plane.chunks.map((c) => c.agent)).toEqual([id, id]);
    expect(world.plane.chunks[0]?.chunk).toEqual({
      seq: 3,
      runId: "r1",
      stepId: "fit",
      attempt: 1,
      epoch: 1,
      firstEntry: 3,
      entryCount: 1,
      encoding: "identity",
      entries: new Uint8Array([3, 0, 255]),
    });
    expect(world.plane.chunks[1]?.chunk.encoding).toBe("gzip");
    stream.end();
  });

  test.each([
    ["an unknown encoding", { encoding: "brotli" }],
    ["a step that would mean something in a subject", { stepId: "a.>" }],
    ["a run that would", { runId: "*" }],
    ["no entries", { entryCount: 0 }],
    ["far too many bytes", { entries: Buffer.alloc(200_000) }],
  ])("with %s are set aside", async (_, changes) => {
    const { stream, inbox } = await logging();
    stream.write({ chunks: [chunk(1, changes), chunk(2)] });
    await inbox.find((a) => a.ackedSeq === "2");
    expect(inbox.all.flatMap((a) => a.rejected)).toMatchObject([{ seq: "1", code: "request.invalid" }]);
    expect(world.plane.chunks.map((c) => c.chunk.seq)).toEqual([2]);
    stream.end();
  });

  test("are read no faster than they can be stored: a flood waits at the agent", async () => {
    const total = 400;
    const size = 60_000;
    const held = gate();
    const first = gate();
    let stored = 0;
    let storing = 0;
    let mostAtOnce = 0;
    world.plane.onChunk = async () => {
      first.release();
      mostAtOnce = Math.max(mostAtOnce, ++storing);
      await held.opened;
      storing--;
      stored++;
    };
    const { id, client, stream, inbox } = await logging();
    for (let seq = 1; seq <= total; seq++) {
      stream.write({ chunks: [chunk(seq, { entries: Buffer.alloc(size, seq % 256) })] });
    }
    await first.opened;
    // A session of the same agent is answered meanwhile, several times.
    const session = await openSession(client);
    for (let seq = 1; seq <= 20; seq++) {
      session.stream.write(heartbeat(seq));
      await session.inbox.find((m) => m.heartbeatReply?.seq === String(seq));
    }
    expect(stored).toBe(0);
    expect(storing * size).toBeLessThanOrEqual(IN_FLIGHT_MAX_BYTES + size);
    held.release();
    await inbox.find((a) => a.ackedSeq === String(total));
    expect(mostAtOnce * size).toBeLessThanOrEqual(IN_FLIGHT_MAX_BYTES + size);
    expect(world.plane.chunks.map((c) => c.chunk.seq)).toEqual(
      Array.from({ length: total }, (_, i) => i + 1),
    );
    expect(world.plane.chunks.every((c) => c.agent === id)).toBe(true);
    session.stream.end();
    stream.end();
  });
});
