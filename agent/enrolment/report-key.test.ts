import { generateKeyPairSync } from "node:crypto";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readReportKey, reportBytes, verifyReport } from "../../shared/wire/report-signature.ts";
import { finished, leaseKey, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { loadOrMakeReportSigner } from "./report-key.ts";

let directory: TestDirectory;
beforeEach(() => {
  directory = testDirectory();
});
afterEach(() => directory[Symbol.dispose]());

const { privateKey } = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
const keyPem = Buffer.from(privateKey.export({ type: "pkcs8", format: "pem" }));
const identity = { trustDomain: "insitu.test", environment: "dream", name: "a1" };
const file = () => join(directory.path, "identity", "report-key.pem");
const payload = Buffer.from("{}");

test("the key is made once, is readable by the agent's user alone, and is the same after a restart", () => {
  const first = loadOrMakeReportSigner(directory.path, identity);
  expect(statSync(file()).mode & 0o777).toBe(0o600);
  const pem = readFileSync(file(), "utf8");
  const again = loadOrMakeReportSigner(directory.path, identity);
  expect(again.announcement(keyPem).reportPublicKey).toEqual(first.announcement(keyPem).reportPublicKey);
  expect(again.sign(payload)).toEqual(first.sign(payload));
  expect(readFileSync(file(), "utf8")).toBe(pem);
});

test.each([
  ["damaged", "-----BEGIN PRIVATE KEY-----"],
  ["of another kind", keyPem],
])("a key that is %s gives way to a new one", (_, content) => {
  const first = loadOrMakeReportSigner(directory.path, identity);
  writeFileSync(file(), content);
  const next = loadOrMakeReportSigner(directory.path, identity);
  expect(next.sign(payload).keyId).not.toBe(first.sign(payload).keyId);
  expect(loadOrMakeReportSigner(directory.path, identity).sign(payload)).toEqual(next.sign(payload));
});

test("a signature is of one agent over one payload", () => {
  const signer = loadOrMakeReportSigner(directory.path, identity);
  const key = readReportKey(signer.announcement(keyPem).reportPublicKey)!;
  const { signature } = signer.sign(payload);
  const uri = "spiffe://insitu.test/env/dream/agent/a1";
  expect(verifyReport(key, uri, payload, signature)).toBe(true);
  expect(verifyReport(key, uri, Buffer.from("{ }"), signature)).toBe(false);
  expect(verifyReport(key, uri.replace("a1", "a2"), payload, signature)).toBe(false);
});

test("what agents write of an outcome is what can be written again from a run's events", () => {
  const report = finished(leaseKey());
  expect(Buffer.from(reportBytes(report)).toString()).toBe(JSON.stringify(report));
});
