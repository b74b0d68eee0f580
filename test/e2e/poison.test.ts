/** Messages that nobody can make sense of, in every queue of the programs as they ship. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { NatsConnection } from "nats";
import { expect, test } from "vitest";
import type { PoisonDetail, PoisonView } from "../../control-plane/api/schemas.ts";
import { loadConfig, type ServerConfig } from "../../control-plane/config.ts";
import { IDENTITY_PREFIX } from "../../control-plane/fleet/agent-record.ts";
import { POISON_SOURCES, type PoisonSource } from "../../control-plane/poison/ports.ts";
import { connectNats } from "../../control-plane/store/jetstream.ts";
import { runningTarget } from "../../control-plane/store/nats-target.ts";
import { BUCKETS, STREAMS, subjects } from "../../shared/wire/subjects.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 60_000;

/** As the control plane, which alone may write everywhere. */
async function natsOf(plant: Plant): Promise<NatsConnection> {
  const config = loadConfig(["--data", join(plant.directory, "server")], {}) as ServerConfig;
  return await connectNats({ ...(await runningTarget(config)), name: "test" });
}

test("in every queue it is set aside with a reason, and the work behind it goes on; also after a restart", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "error" } });
  await plant.startServer();
  const gate = join(plant.directory, "gate");
  const run = ["sh", "-ec", 'echo begun; while [ ! -e "$GATE" ]; do sleep 0.02; done'];
  const pipeline = {
    kind: "pipeline",
    name: "gated",
    steps: [{ id: "wait", environment: "site", run, env: { GATE: gate } }],
  };
  await plant.apply({ kind: "environment", name: "site", jurisdiction: "DE" }, pipeline);
  await plant.startAgent("site", "only", ["--slots", "2"]);
  const { id } = await plant.start("gated");
  await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.started"));

  // Where an agent sends what is malformed is looked at in control-plane/gateway/poison.test.ts.
  const junk: Record<Exclude<PoisonSource, "gateway">, string> = {
    work: subjects.work("site"),
    inbox: subjects.inbox(3),
    runs: subjects.run(id),
    resources: subjects.resources,
    logs: subjects.log(id, "wait", 1),
    bucket: `$KV.${BUCKETS.agents}.${IDENTITY_PREFIX}site.nobody`,
  };
  expect([...Object.keys(junk), "gateway"].sort()).toEqual([...POISON_SOURCES].sort());
  await using connection = Object.assign(await natsOf(plant), {
    [Symbol.asyncDispose]: () => connection.close(),
  });
  for (const subject of Object.values(junk)) await connection.jetstream().publish(subject, "\u0000 junk");

  // Everything behind it: an apply, a run that was going, a new one, its log.
  await plant.apply({ kind: "pool", name: "licences", capacity: 1 });
  writeFileSync(gate, "");
  const events = await plant.events(id, () => false);
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  const next = await plant.follow("gated");
  expect(next.events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  const log = await fetch(`${plant.url}/v1/runs/${id}/logs`, {
    headers: { authorization: `Bearer ${plant.token}`, "accept-encoding": "gzip" },
  });
  expect((await log.text()).trim().split("\n")).toHaveLength(1);

  const list = async () => ((await plant.call("GET", "/v1/poison")) as { items: PoisonView[] }).items;
  const sources = async () => (await list()).map(({ source }) => source).sort();
  await expect.poll(sources).toEqual(Object.keys(junk).sort());
  const offer = (await list()).find(({ source }) => source === "work")!;
  expect(offer).toMatchObject({ from: "site/only", reason: "it is not signed", bytes: 6 });
  const { data } = (await plant.call("GET", `/v1/poison/${offer.id}`)) as PoisonDetail;
  expect(Buffer.from(data, "base64").toString()).toBe("\u0000 junk");
  const manager = await connection.jetstreamManager();
  for (const stream of [STREAMS.work, STREAMS.inbox])
    expect((await manager.streams.info(stream)).state.messages).toBe(0);

  const insitu = async (...args: string[]) => {
    const at = ["--server", plant.url, "--token", plant.token];
    return (await promisify(execFile)(process.execPath, [join(DIST, "insitu.js"), ...args, ...at])).stdout;
  };
  expect(await insitu("poison", "list")).toMatch(/work +work\.site +site\/only +6 +it is not signed/);
  expect(await insitu("poison", "show", String(offer.id))).toMatch(/reason +it is not signed[\s\S]*\^@ junk/);
  expect(await insitu("poison", "drop", String(offer.id))).toBe(`poison message ${offer.id} dropped\n`);
  await expect(insitu("poison", "show", String(offer.id))).rejects.toMatchObject({ code: 4 });
  const gone = once(plant.server!, "exit");
  plant.server!.kill("SIGTERM");
  await gone;
  await plant.startServer();
  expect(await sources()).toEqual(
    Object.keys(junk)
      .filter((source) => source !== "work")
      .sort(),
  );
});
