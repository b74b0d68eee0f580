/** A step that is let out to one host, in the programs as they ship: placement, the site's consent, an agent's end. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 60_000;

test("a step reaches the host of its list where its site allows it, also over its agent's sudden end, and the run counts it", {
  timeout: LIMIT_MS,
}, async () => {
  const sockets: Socket[] = [];
  const target = createServer((socket) => {
    sockets.push(socket);
    socket.on("data", (data) => data.includes("two") && socket.end("bye\n"));
    socket.write("hello\n");
  }).listen(0, "127.0.0.1");
  await once(target, "listening");
  const { port } = target.address() as AddressInfo;
  await using plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "error" } });
  await plant.startServer();
  const variable = `INSITU_CONNECT_127_0_0_1_${port}`;
  const script = `a=$${variable}; exec 3<>/dev/tcp/\${a%:*}/\${a#*:}; head -n1 <&3; printf one >&3; head -n1 <&3; printf two >&3; cat <&3`;
  const step = { id: "load", environment: "site", run: ["bash", "-c", script] };
  await plant.apply(
    { kind: "environment", name: "site", jurisdiction: "DE" },
    { kind: "pipeline", name: "out", steps: [{ ...step, network: { allow: [`127.0.0.1:${port}`] } }] },
  );
  const plain = await plant.startAgent("site", "plain");
  const { id } = await plant.start("out");
  const held = await plant.events(id, (events) => events.some(({ kind }) => kind === "step.held"));
  expect(JSON.stringify(held)).toMatch(/no agent in site lets steps out, and the step asks for 127\.0\.0\.1/);
  plain.kill("SIGTERM");
  await once(plain, "exit");

  const config = join(plant.directory, "agent.yaml");
  writeFileSync(config, JSON.stringify({ sandbox: { egress: [`127.0.0.1:${port}`] } }));
  const flags = ["--config", config, "--sandbox", "required"];
  const agent = await plant.startAgent("site", "boxing", flags);
  const [socket] = (await once(target, "connection")) as [Socket];
  await once(socket, "data");
  agent.kill("SIGKILL");
  await once(agent, "exit");
  socket.write("go\n");
  plant.spawnAgent("site", "boxing", flags);
  const events = await plant.events(id, () => false);
  target.close();
  expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  expect(sockets).toHaveLength(1);
  const network = {
    kind: "network",
    name: `127.0.0.1:${port}`,
    connections: 1,
    sentBytes: 6,
    receivedBytes: 13,
  };
  expect(events.find(({ kind }) => kind === "attempt.finished")).toMatchObject({
    outcome: {
      sandbox: { kind: "bubblewrap", network: "allow-list" },
      egress: expect.arrayContaining([expect.objectContaining(network)]),
    },
  });
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [join(DIST, "insitu.js"), "runs", "show", id],
    { env: { ...process.env, INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token, NO_COLOR: "1" } },
  );
  expect(stdout).toMatch(new RegExp(`load +site +127\\.0\\.0\\.1:${port} +1 +0 +6 B +13 B`));
  expect(stdout).toMatch(/load: bubblewrap [\d.]+, network allow-list/);
});
