import { X509Certificate } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { loadNatsOperator } from "../../access/nats-operator.ts";
import { insitu } from "../cli.fixture.ts";

const cwd = mkdtempSync(join(tmpdir(), "insitu-nats-init-"));
afterAll(() => rmSync(cwd, { recursive: true, force: true }));

const init = (...flags: string[]) => insitu(["nats", "init", ...flags], { cwd });
const read = (...path: string[]): string => readFileSync(join(cwd, ...path), "utf8");

interface Config {
  listen: string;
  operator: string;
  jetstream: { store_dir: string; sync_interval?: string };
  tls: { cert_file: string; key_file: string };
  cluster?: { routes: string[]; tls: { ca_file: string; verify: boolean } };
}

test("one node: everything is readable by its owner alone, and nothing but the secrets holds the keys", async () => {
  const written = await init("--out", "one", "--host", "nats.example.org");
  expect(written).toMatchObject({ code: 0, stderr: "" });
  expect(written.stdout).toContain(
    `INSITU_NATS_CA_FILE=${cwd}/one/secrets/ca.crt.pem insitu server --secrets ${cwd}/one/secrets --nats-url tls://nats.example.org:4222 --nats-copy off\n`,
  );
  // One that does not sync each write is not vouched for.
  const older = await init("--out", "older", "--host", "nats.example.org", "--sync", "interval");
  expect(older.stdout).toMatch(/--nats-url tls:\/\/nats.example.org:4222$/m);
  const files = readdirSync(join(cwd, "one"), { recursive: true, encoding: "utf8" });
  for (const file of files) expect(statSync(join(cwd, "one", file)).mode & 0o077).toBe(0);
  expect(files.filter((file) => file.startsWith("n1/")).sort()).toEqual([
    "n1/client.crt.pem",
    "n1/client.key.pem",
    "n1/nats.conf",
  ]);
  const { root } = JSON.parse(read("one", "secrets", "nats-operator.json")) as { root: string };
  expect(read("one", "n1", "nats.conf")).not.toContain(root);
  const config = JSON.parse(read("one", "n1", "nats.conf")) as Config;
  expect(config).toMatchObject({
    listen: "0.0.0.0:4222",
    jetstream: { store_dir: "/var/lib/insitu/nats/n1", sync_interval: "always" },
    tls: { cert_file: "/etc/insitu/nats/n1/client.crt.pem" },
  });
  expect(config.operator).toBe((await loadNatsOperator(join(cwd, "one", "secrets")))!.config.operatorJwt);
  expect(config.cluster).toBeUndefined();
});

test("three nodes: certificates of clients and of routes are of different authorities, each for its host", async () => {
  const hosts = ["n1.example.org", "10.0.0.2", "fd00::3"];
  const written = await init("--out", "three", "--nodes", "3", ...hosts.flatMap((host) => ["--host", host]));
  expect(written.stdout).toContain(
    "--nats-url tls://n1.example.org:4222,tls://10.0.0.2:4222,tls://[fd00::3]:4222 --stream-replicas 3\n",
  );
  const gateway = new X509Certificate(read("three", "secrets", "ca.crt.pem"));
  for (const [i, host] of hosts.entries()) {
    const node = `n${i + 1}`;
    const client = new X509Certificate(read("three", node, "client.crt.pem"));
    const route = new X509Certificate(read("three", node, "route.crt.pem"));
    const routes = new X509Certificate(read("three", node, "route-ca.crt.pem"));
    for (const certificate of [client, route])
      expect(host.includes(".org") ? certificate.checkHost(host) : certificate.checkIP(host)).toBeTruthy();
    expect([client.verify(gateway.publicKey), client.verify(routes.publicKey)]).toEqual([true, false]);
    expect([route.verify(gateway.publicKey), route.verify(routes.publicKey)]).toEqual([false, true]);
    const { cluster } = JSON.parse(read("three", node, "nats.conf")) as Config;
    expect(cluster?.tls).toMatchObject({
      verify: true,
      ca_file: `/etc/insitu/nats/${node}/route-ca.crt.pem`,
    });
    expect(cluster?.routes).toHaveLength(3);
  }
});

test("with secrets that are there it writes the same configuration, and new certificates", async () => {
  await init("--out", "before", "--host", "a,b,c");
  const again = await init("--out", "after", "--host", "a,b,c", "--secrets", "before/secrets");
  expect(again.code).toBe(0);
  expect(readdirSync(join(cwd, "after")).sort()).toEqual(["n1", "n2", "n3"]);
  for (const node of ["n1", "n2", "n3"]) {
    expect(read("after", node, "nats.conf")).toBe(read("before", node, "nats.conf"));
    expect(read("after", node, "route-ca.crt.pem")).toBe(read("before", node, "route-ca.crt.pem"));
    expect(read("after", node, "client.crt.pem")).not.toBe(read("before", node, "client.crt.pem"));
  }
});

test("a certificate of another authority is named, and none is made for clients", async () => {
  const given = ["--certificate", "/etc/ssl/nats.pem", "--key", "/etc/ssl/nats.key"];
  const written = await init("--out", "given", "--host", "nats.example.org", ...given);
  expect(written.stdout).toContain("INSITU_NATS_CA_FILE=THE-CA-OF-YOUR-CERTIFICATE.pem");
  expect(readdirSync(join(cwd, "given", "n1"))).toEqual(["nats.conf"]);
  const { tls } = JSON.parse(read("given", "n1", "nats.conf")) as Config;
  expect(tls).toMatchObject({ cert_file: "/etc/ssl/nats.pem", key_file: "/etc/ssl/nats.key" });
});

test("what is there is not overwritten, and a refusal leaves nothing behind", async () => {
  await init("--out", "twice", "--host", "nats.example.org");
  const before = read("twice", "n1", "client.crt.pem");
  const again = await init("--out", "twice", "--host", "nats.example.org");
  expect(again.code).toBe(2);
  expect(again.stderr).toMatch(/nothing is overwritten: name another directory with --out/);
  expect(read("twice", "n1", "client.crt.pem")).toBe(before);
  writeFileSync(join(cwd, "file"), "");
  expect((await init("--out", "file", "--host", "nats.example.org")).code).toBe(2);
  writeFileSync(join(cwd, "twice", "secrets", "nats-operator.json"), "not JSON");
  const damaged = await init("--out", "new", "--secrets", "twice/secrets", "--host", "nats.example.org");
  expect(damaged.stderr).toMatch(/nats-operator\.json is damaged/);
  expect(readdirSync(cwd).filter((name) => name.startsWith("new"))).toEqual([]);
});

test.each([
  [["--host", "a,b"], /2 nodes: a NATS has 1, 3 or 5/],
  [["--host", "a,a,b"], /names a host twice/],
  [["--host", "a", "--nodes", "3"], /--nodes 3 and 1 hosts/],
  [["--host", 'a"\nlisten: 1'], /neither a host name nor an address/],
  [["--host", "a", "--port", "70000"], /--port 70000 is no port/],
  [["--host", "a,b,c", "--port", "4222", "--route-port", "4222"], /--route-port.*a port of its own/],
  [["--host", "a", "--install-dir", "etc"], /--install-dir etc must be absolute/],
  [["--host", "a", "--key", "/k"], /--certificate and --key go together/],
])("%j is refused before anything is written", async (flags, message) => {
  const written = await init("--out", "refused", ...flags);
  expect(written.code).toBe(2);
  expect(written.stderr).toMatch(message);
  expect(readdirSync(cwd)).not.toContain("refused");
});
