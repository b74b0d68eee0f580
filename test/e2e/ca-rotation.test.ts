/** How one authority takes the other's place, with the programs as they are shipped. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { openGateway } from "../../agent/uplink/gateway-client.ts";
import type { AuthorityView } from "../../control-plane/api/schemas.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = { kind: "pipeline", name: "p", steps: [{ id: "s", environment: "site", uses: "noop" }] };
const LIMIT_MS = 120_000;

const authority = async (plant: Plant) => (await plant.call("GET", "/v1/authority")) as AuthorityView;
const change = async (plant: Plant, what: string, body?: object) =>
  (await plant.call("POST", `/v1/authority/${what}`, body)) as AuthorityView;

test("one root takes the other's place while a step runs, which notices nothing; then the former one opens nothing, also after restarts", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: ["--heartbeat", "300"] });
  await plant.startServer();
  const gate = join(plant.directory, "gate");
  const wait = ["sh", "-c", `while [ ! -e ${gate} ]; do sleep 0.05; done; echo done`];
  const gated = { kind: "pipeline", name: "gated", steps: [{ id: "s", environment: "site", run: wait }] };
  await plant.apply(SITE, PIPELINE, gated);
  await plant.startAgent("site", "a1");
  const away = await plant.startAgent("site", "away");
  const { id } = await plant.start("gated");
  await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.started"));
  const inside = (name: string, file: string): string =>
    readFileSync(join(plant.directory, "sites", "site", name, "identity", file), "utf8");
  const [first] = (await authority(plant)).issuers;
  const stolen = { keyPem: inside("away", "key.pem"), certificatePem: inside("away", "certificate.pem") };
  const formerCa = inside("away", "ca.pem");

  // One agent is cut off before anything begins.
  const gone = once(away, "exit");
  away.kill("SIGKILL");
  await gone;
  const rotated = await change(plant, "rotate");
  expect(rotated.issuers.map(({ state }) => state)).toEqual(["active", "next"]);
  await expect(change(plant, "rotate")).rejects.toThrow(/: 409 .*waits to be activated/);
  await plant.until(async () => (await authority(plant)).behindCount === 1);
  await expect(change(plant, "activate", {})).rejects.toThrow(/: 409 .*site\/away/);
  // It comes back over the former root, and learns of the new one.
  plant.spawnAgent("site", "away");
  await plant.until(async () => (await authority(plant)).behindCount === 0);

  await change(plant, "activate", {});
  const next = rotated.issuers[1]!;
  await plant.until(async () => (await authority(plant)).issuers[1]!.certificates === 2);
  expect(inside("a1", "roots.json")).toContain(next.pin);
  const retired = await change(plant, "retire", { id: first!.id });
  expect(retired.issuers.map(({ state, serving }) => [state, serving])).toEqual([
    ["retired", false],
    ["active", true],
  ]);
  const trustedBy = (name: string): string =>
    (JSON.parse(inside(name, "roots.json")) as { caPem: string }).caPem;
  for (const name of ["a1", "away"]) await plant.until(async () => trustedBy(name) === retired.caPem);
  expect(retired.caPem).not.toContain(formerCa.trim());
  expect(existsSync(join(plant.directory, "server", "secrets", "ca.key.pem"))).toBe(false);

  writeFileSync(gate, "");
  const events = await plant.events(id, () => false);
  expect(events.filter(({ kind }) => kind.startsWith("attempt.")).map(({ kind }) => kind)).toEqual([
    "attempt.offered",
    "attempt.started",
    "attempt.finished",
  ]);
  expect(events.at(-1)).toMatchObject({ status: "succeeded" });

  // Everything starts again: the server has the new root alone, and an agent that joins gets no other.
  const server = plant.server!;
  const ended = once(server, "exit");
  server.kill("SIGKILL");
  await ended;
  const { gatewayPort } = plant;
  await plant.startServer({ gatewayPort });
  await plant.startAgent("site", "new");
  expect(inside("new", "ca.pem")).toBe((await authority(plant)).caPem);
  await plant.until(async () => (await authority(plant)).issuers[1]!.certificates === 3);
  const after = await plant.start("p");
  expect((await plant.events(after.id, () => false)).at(-1)).toMatchObject({ status: "succeeded" });
  const files = readdirSync(join(plant.directory, "server", "secrets")).filter((name) =>
    name.startsWith("ca"),
  );
  expect(files.sort()).toEqual(["ca.crt.pem", `ca-${next.id}.crt.pem`, `ca-${next.id}.key.pem`].sort());

  // Whoever has a certificate of the former root, and an agent that trusts that root alone.
  const call = async (trust: Parameters<typeof openGateway>[1]): Promise<string> => {
    const client = openGateway(`localhost:${gatewayPort}`, trust);
    const session = client.Session();
    const answer = await new Promise<string>((resolve) =>
      session.on("error", (err) => resolve(err.message)).on("data", () => resolve("let in")),
    );
    client.close();
    return answer;
  };
  const old = { keyPem: Buffer.from(stolen.keyPem), certificatePem: Buffer.from(stolen.certificatePem) };
  expect(await call({ ...old, caPem: Buffer.from((await authority(plant)).caPem) })).toMatch(
    /another authority/,
  );
  expect(await call({ ...old, caPem: Buffer.from(formerCa) })).toMatch(/UNAVAILABLE/);
});

test("a root that never was on the server takes over, with an intermediate there; agents join and work below it", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, serverFlags: ["--heartbeat", "300"] });
  await plant.startServer();
  await plant.apply(SITE, PIPELINE);
  await plant.startAgent("site", "a1");
  const [first] = (await authority(plant)).issuers;
  const file = (name: string): string => join(plant.directory, name);
  const cli = (...args: string[]): string =>
    execFileSync(process.execPath, [join(DIST, "insitu.js"), ...args], {
      encoding: "utf8",
      env: { ...process.env, INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token },
    });
  const openssl = (...args: string[]) =>
    execFileSync("openssl", args, { cwd: plant.directory, stdio: "pipe" });

  writeFileSync(file("insitu.csr"), cli("ca", "request"));
  openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "root.key");
  const subject = ["-subj", "/CN=Offline Root", "-addext", "basicConstraints=critical,CA:TRUE"];
  openssl("req", "-x509", "-new", "-key", "root.key", "-days", "3650", ...subject, "-out", "root.crt");
  writeFileSync(
    file("ext"),
    "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign",
  );
  const from = [
    "-CA",
    "root.crt",
    "-CAkey",
    "root.key",
    "-CAcreateserial",
    "-extfile",
    "ext",
    "-days",
    "365",
  ];
  openssl("x509", "-req", "-in", "insitu.csr", ...from, "-out", "signed.crt");
  const root = readFileSync(file("root.crt"), "utf8");
  writeFileSync(file("chain.pem"), readFileSync(file("signed.crt"), "utf8") + root);
  expect(cli("ca", "import", file("chain.pem"))).toContain("next, intermediate");
  await plant.until(async () => (await authority(plant)).behindCount === 0);
  cli("ca", "activate");
  await plant.until(async () => (await authority(plant)).issuers[1]!.certificates === 1);
  cli("ca", "retire", first!.id);
  expect(cli("ca", "show", "--pem").trim()).toBe(root.trim());

  await plant.startAgent("site", "a2");
  await plant.until(async () => (await authority(plant)).issuers[1]!.certificates === 2);
  const { gatewayPort } = plant;
  const ended = once(plant.server!, "exit");
  plant.server!.kill("SIGTERM");
  await ended;
  await plant.startServer({ gatewayPort });
  const connected = async (): Promise<number> => {
    const { items } = (await plant.call("GET", "/v1/agents")) as { items: { connected: boolean }[] };
    return items.filter((agent) => agent.connected).length;
  };
  await plant.until(async () => (await connected()) === 2);
  const { id } = await plant.start("p");
  expect((await plant.events(id, () => false)).at(-1)).toMatchObject({ status: "succeeded" });
});
