import { createPrivateKey, generateKeyPairSync } from "node:crypto";
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { testDirectory } from "../agent.fixture.ts";
import { createAuthority } from "../uplink/gateway.fixture.ts";
import { enrolmentKey, loadIdentity, replacementSteps, saveIdentity } from "./identity.ts";

const authority = await createAuthority();

test("an identity is read back as it was saved, in files of the agent's user alone", () => {
  using directory = testDirectory();
  const identity = authority.identity(7443);
  saveIdentity(directory.path, identity);
  const { notAfterMs, ...read } = loadIdentity(directory.path)!;
  const { notAfterMs: _, ...saved } = identity;
  expect(read).toEqual(saved);
  expect(Math.abs(notAfterMs - identity.notAfterMs)).toBeLessThan(1_000); // certificates know whole seconds
  const inside = join(directory.path, "identity");
  expect(statSync(inside).mode & 0o777).toBe(0o700);
  for (const file of readdirSync(inside)) expect(statSync(join(inside, file)).mode & 0o777).toBe(0o600);
});

test("before enrolment there is none", () => {
  using directory = testDirectory();
  expect(loadIdentity(directory.path)).toBeUndefined();
});

test("a crash before the last file leaves none, rather than half of one", () => {
  using directory = testDirectory();
  saveIdentity(directory.path, authority.identity(7443));
  rmSync(join(directory.path, "identity", "identity.json")); // it is written last
  expect(loadIdentity(directory.path)).toBeUndefined();
});

test("the key is kept before it is used, for the agent's user alone, and is the same at every try", () => {
  using directory = testDirectory();
  const key = enrolmentKey(directory.path);
  const file = join(directory.path, "identity", "key.pem");
  expect(readFileSync(file)).toEqual(key);
  expect(statSync(file).mode & 0o777).toBe(0o600);
  expect(loadIdentity(directory.path)).toBeUndefined();
  expect(enrolmentKey(directory.path)).toEqual(key);
  expect(createPrivateKey(key).asymmetricKeyDetails).toMatchObject({ namedCurve: "prime256v1" });
});

test.each([
  ["that is torn", "-----BEGIN PRIVATE KEY-----\nMIGH"],
  [
    "of another kind",
    generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
  ],
])("a key %s is not enrolled with", (_, damaged) => {
  using directory = testDirectory();
  enrolmentKey(directory.path);
  const file = join(directory.path, "identity", "key.pem");
  writeFileSync(file, damaged);
  const key = enrolmentKey(directory.path);
  expect(key.toString()).not.toBe(damaged);
  expect(readFileSync(file)).toEqual(key);
});

test.each([0, 1, 2, 3, 4])(
  "a crash after %i writes of a renewal leaves a whole identity: the former or the new one",
  async (done) => {
    using directory = testDirectory();
    const former = authority.identity(7443);
    saveIdentity(directory.path, former);
    const next = (await createAuthority()).identity(7443); // another key and its certificate
    const inside = join(directory.path, "identity");
    for (const step of replacementSteps(inside, next).slice(0, done)) step();
    const left = done === 0 ? former : next;
    // Read twice: the first start finishes what was begun.
    for (let start = 1; start <= 2; start++) {
      const { keyPem, certificatePem } = loadIdentity(directory.path)!;
      expect({ keyPem, certificatePem }).toEqual({
        keyPem: left.keyPem,
        certificatePem: left.certificatePem,
      });
      expect(readdirSync(inside)).not.toContain("pair.pem");
    }
  },
);

test("a key that does not belong to the certificate is told, with what to do", async () => {
  using directory = testDirectory();
  saveIdentity(directory.path, authority.identity(7443));
  const other = (await createAuthority()).identity(7443);
  writeFileSync(join(directory.path, "identity", "key.pem"), other.keyPem);
  expect(() => loadIdentity(directory.path)).toThrow(
    /do not belong together.*enrol again with a new join token/,
  );
});
