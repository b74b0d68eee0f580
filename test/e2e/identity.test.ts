/** The life of an agent's identity, with the programs as they are shipped. */
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { connect, jwtAuthenticator } from "nats";
import { expect, test } from "vitest";
import type { AgentView } from "../../control-plane/api/schemas.ts";
import { systemClock } from "../../shared/system.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = { kind: "pipeline", name: "p", steps: [{ id: "s", environment: "site", uses: "noop" }] };
const LIMIT_MS = 90_000;
const AT_ONCE_MS = 1_000;
const REFUSED = "the control plane does not take this agent any more; it takes no work";

test("an agent that is revoked is cut off at once, and nothing that it has opens anything again, whatever is restarted", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: ["--heartbeat", "300"] });
  await plant.startServer();
  await plant.apply(SITE, PIPELINE);
  const thief = await plant.startAgent("site", "thief");
  const state = join(plant.directory, "sites", "site", "thief");
  const read = (file: string): string => readFileSync(join(state, file), "utf8");
  const file = (name: string): string => join(plant.directory, name);
  const said = (text: string): number => readFileSync(file("site-thief.log"), "utf8").split(text).length - 1;
  await plant.until(async () => said('"work queue connected"') === 1);
  // What an attacker has copied from the host.
  const { seed } = JSON.parse(read("nats-user.json")) as { seed: string };
  const access = read("nats.json");
  const { servers, userJwt } = JSON.parse(access) as { servers: string[]; userJwt: string };
  const onNats = (natsServers = servers) =>
    connect({
      servers: natsServers,
      authenticator: jwtAuthenticator(userJwt, Buffer.from(seed)),
      reconnect: false,
    });
  const stolen = await onNats();

  const beganMs = systemClock.monotonicMs();
  const revoked = (await plant.call("POST", "/v1/agents/site/thief/revoke", {
    reason: "host stolen",
  })) as AgentView;
  expect(revoked).toMatchObject({ revoked: { by: "operator", reason: "host stolen" } });
  await stolen.closed();
  await plant.until(async () => said(REFUSED) === 1);
  expect(systemClock.monotonicMs() - beganMs).toBeLessThan(AT_ONCE_MS);
  await expect(onNats()).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });

  // Restarts of everything, with the files that the attacker has kept.
  for (const child of [thief, plant.server!]) {
    const gone = once(child, "exit");
    child.kill("SIGKILL");
    await gone;
  }
  const natsPort = Number(new URL(servers[0]!).port);
  const gateway = JSON.parse(read("identity/identity.json")) as { gateway: string };
  await plant.startServer({ natsPort, gatewayPort: Number(gateway.gateway.split(":").at(-1)) });
  writeFileSync(join(state, "nats.json"), access);
  await plant.startAgent("site", "honest");
  plant.spawnAgent("site", "thief");
  await plant.until(async () => said(REFUSED) === 2);
  await expect(onNats()).rejects.toMatchObject({ code: "AUTHORIZATION_VIOLATION" });
  const { id } = await plant.start("p");
  const events = await plant.events(id, () => false);
  expect(events.flatMap((event) => (event.kind === "attempt.started" ? [event.agent] : []))).toEqual([
    "site/honest",
  ]);
  const { items } = (await plant.call("GET", "/v1/agents")) as { items: AgentView[] };
  expect(items.map(({ name, connected, revoked }) => [name, connected, revoked?.reason])).toEqual([
    ["honest", true, undefined],
    ["thief", false, "host stolen"],
  ]);
});
