import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { AuthorityFiles } from "./authority-files.ts";
import { createRoot, loadOrCreatePki } from "./pki.ts";
import { ReceiptRoots } from "./receipt-roots.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "insitu-roots-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

test("receipts lead to every root there is or was: one that comes is seen, one that is retired stays", async () => {
  const options = { directory, trustDomain: "insitu.test", clock: systemClock };
  const { caPem } = await loadOrCreatePki(options);
  const files = new AuthorityFiles(directory);
  const roots = await ReceiptRoots.open(files, "insitu.test");
  expect(roots.trust.rootsPem.map((pem) => pem.trim())).toEqual([caPem.trim()]);
  const before = roots.trust;
  expect(await roots.reload()).toBe(before);

  const next = await files.add(await createRoot(options));
  expect((await roots.reload()).rootsPem).toHaveLength(2);
  const [first] = (await files.issuers()).filter(({ id }) => id !== next.id);
  await files.retire(first!);
  expect((await files.issuers()).map(({ id }) => id)).toEqual([next.id]);
  expect((await roots.reload()).rootsPem).toHaveLength(2);
});
