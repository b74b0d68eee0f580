/** The certificate of a server off loopback is checked against the CA that its context names. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { loadOrCreatePki, type Pki } from "../access/pki.ts";
import { insitu } from "./cli.fixture.ts";

let directory: string;
let pki: Pki;
let server: https.Server;
let url: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-tls-"));
  pki = await loadOrCreatePki({
    directory: join(directory, "pki"),
    trustDomain: "insitu.test",
    clock: systemClock,
  });
  const { chainPem, keyPem } = await pki.issueServerCertificate({ dns: ["localhost"], ips: ["127.0.0.1"] });
  server = https.createServer({ cert: chainPem, key: keyPem }, (_request, response) => {
    response.writeHead(200, { "content-type": "application/json" }).end('{"items":[],"nextCursor":null}');
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  await rm(directory, { recursive: true, force: true });
});

test("a certificate of an unknown CA is refused, and the message says how to name the CA", async () => {
  const { code, stderr } = await insitu(["get", "pools", "-o", "json"], { server: url });
  expect(code).toBe(8);
  expect(stderr).toContain("is not trusted");
  expect(stderr).toContain("--ca-file");
});

test("the CA can be given by a flag, or by context.json with a path beside it", async () => {
  const caFile = join(directory, "ca.pem");
  await writeFile(caFile, pki.caPem);
  expect((await insitu(["get", "pools", "-o", "json", "--ca-file", caFile], { server: url })).stdout).toBe(
    "[]\n",
  );
  await mkdir(join(directory, ".insitu"), { recursive: true });
  await writeFile(
    join(directory, ".insitu", "context.json"),
    JSON.stringify({ server: url, caFile: "../ca.pem" }),
  );
  expect((await insitu(["get", "pools", "-o", "json"], { cwd: directory })).stdout).toBe("[]\n");
});
