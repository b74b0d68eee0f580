/** How a gateway starts and stops. */
import { status } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import type { Ack__Output } from "../../shared/wire/gen/insitu/agent/v1/Ack.ts";
import { Inbox, lease, openSession, startWorld } from "./gateway.fixture.ts";
import { createGateway } from "./gateway.ts";

test("a gateway that closes asks its agents to come back, finishes what it was storing, and lets go of the port", async () => {
  const world = await startWorld({ drainSpreadMs: 4_000 });
  try {
    let finish = () => {};
    let begun = () => {};
    const storing = new Promise<void>((resolve) => {
      begun = resolve;
    });
    world.plane.onReport = async () => {
      begun();
      await new Promise<void>((resolve) => {
        finish = resolve;
      });
      return { accepted: true };
    };
    const client = world.client(await world.join("dream", "a1"));
    const session = await openSession(client);
    const report = client.Report();
    const acks = new Inbox<Ack__Output>(report as never);
    report.write({
      reports: [
        { seq: 1, payload: Buffer.from(JSON.stringify({ kind: "started", lease: lease("r"), atMs: 1 })) },
      ],
    });
    await storing;

    const closed = world.gateway.close();
    expect(await session.inbox.find((m) => m.drain)).toEqual({
      reconnectAfterMs: 2_000,
      gateways: [],
      reason: "the server stops",
    });
    const late = new Inbox(client.Logs() as never);
    expect(await late.end()).toMatchObject({ code: status.UNAVAILABLE });
    finish();
    await acks.find((a) => a.ackedSeq === "1");
    expect(await acks.end()).toBeUndefined();
    await session.inbox.end();
    await closed;
    expect(world.fleet.agentsOf("dream")).toEqual([]);

    const next = createGateway({
      ...world.gatewayOptions,
      listen: { host: "127.0.0.1", port: world.gateway.port },
    });
    await next.start(new AbortController().signal);
    await next.close();
  } finally {
    await world.stop();
  }
});

test("a drain ends when the agents have gone, and later without them", async () => {
  const world = await startWorld();
  try {
    const session = await openSession(world.client(await world.join("dream", "a1")));
    const drained = world.gateway.drain(60_000);
    await session.inbox.find((m) => m.drain);
    session.stream.end();
    await drained;
    expect(world.fleet.get("dream/a1")?.connected).toBe(false);
  } finally {
    await world.stop();
  }
});

test("an agent that ignores everything does not keep a gateway from closing", async () => {
  const world = await startWorld();
  try {
    const session = await openSession(world.client(await world.join("dream", "deaf")));
    session.stream.pause();
    await world.gateway.close();
    await world.gateway.close();
    expect(world.fleet.agentsOf("dream")).toEqual([]);
  } finally {
    await world.stop();
  }
});

test("a port that is taken is said so", async () => {
  const world = await startWorld();
  try {
    const second = createGateway({
      ...world.gatewayOptions,
      listen: { host: "127.0.0.1", port: world.gateway.port },
    });
    await expect(second.start(new AbortController().signal)).rejects.toThrow(
      /cannot listen on 127.0.0.1.*is the port taken/,
    );
    await second.close();
  } finally {
    await world.stop();
  }
});

test("a gateway that is closed before it starts does not start", async () => {
  const world = await startWorld();
  try {
    const stopped = createGateway(world.gatewayOptions);
    await stopped.close();
    await expect(stopped.start(new AbortController().signal)).rejects.toMatchObject({ code: "cancelled" });
  } finally {
    await world.stop();
  }
});
