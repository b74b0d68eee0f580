import { copyFileSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openCheckpoint } from "../../shared/provenance/checkpoint.ts";
import { EMPTY_ROOT } from "../../shared/provenance/merkle.ts";
import { parseVerifierKey } from "../../shared/provenance/signed-note.ts";
import { loadOrCreateLogKey } from "./log-key.ts";
import { loadOrCreateOfferSigner } from "./offer-signer.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "insitu-log-key-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const opened = async (secrets = directory) => {
  await loadOrCreateOfferSigner(secrets);
  return await loadOrCreateLogKey(secrets, "insitu.test");
};

test("what it signs is a checkpoint that opens with its verifier key, under its origin", async () => {
  const key = await opened();
  expect(key.origin).toMatch(/^insitu\.dev\/insitu\.test\/[0-9a-f]{16}$/);
  const note = key.sign({ size: 0, root: EMPTY_ROOT });
  const checkpoint = { origin: key.origin, size: 0, root: EMPTY_ROOT };
  expect(openCheckpoint(note, parseVerifierKey(key.verifierKey)!)).toMatchObject({
    kind: "verified",
    checkpoint,
  });
});

test("it is the same after a restart, and with another key of the offers once it is made", async () => {
  const { verifierKey } = await opened();
  expect(statSync(join(directory, "ledger-key.pem")).mode & 0o777).toBe(0o600);
  rmSync(join(directory, "offer-key.pem"));
  expect((await opened()).verifierKey).toBe(verifierKey);
});

test("replicas with directories of their own and one key of the offers make the same", async () => {
  const { verifierKey } = await opened();
  const other = join(directory, "other");
  mkdirSync(other, { mode: 0o700 });
  copyFileSync(join(directory, "offer-key.pem"), join(other, "offer-key.pem"));
  expect((await opened(other)).verifierKey).toBe(verifierKey);
  const stranger = join(directory, "stranger");
  expect((await opened(stranger)).verifierKey).not.toBe(verifierKey);
});

test("a file that is no such key is refused, and says which", async () => {
  await opened();
  writeFileSync(join(directory, "ledger-key.pem"), "nonsense", { mode: 0o600 });
  await expect(opened()).rejects.toThrow(/ledger-key\.pem is not a private key/);
});
