import "reflect-metadata"; // before @peculiar/x509
import { createPrivateKey, sign, X509Certificate } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import type { Roots__Output } from "../../shared/wire/gen/insitu/agent/v1/Roots.ts";
import { rootsBytes } from "../../shared/wire/roots.ts";
import { newRoot, type TestIssuer } from "../issuers.fixture.ts";
import { acceptRoots, isFromIssuer, isVouchedFor, loadRoots, pinsOf, saveRoots } from "./trusted-roots.ts";

const DOMAIN = "insitu.test";
const at = { trustDomain: DOMAIN, nowMs: systemClock.wallMs() };
const [ours, next, strangers] = [await newRoot("ours"), await newRoot("next"), await newRoot("strangers")];
const held = { revision: 5, issuerPin: "", caPem: Buffer.from(ours.pem) };
const directory = mkdtempSync(join(tmpdir(), "insitu-roots-"));
afterAll(() => rmSync(directory, { recursive: true }));

function told(
  signer: Pick<TestIssuer, "keyPem"> & { chainPem: string },
  { revision = 6, pem = ours.pem + next.pem, domain = DOMAIN, issuerPin = next.pin } = {},
): Roots__Output {
  const bytes = rootsBytes({ trustDomain: domain, revision, issuerPin, pem });
  const signature = sign("sha256", bytes, createPrivateKey(signer.keyPem));
  return {
    revision: String(revision),
    caPem: Buffer.from(pem),
    issuerPin,
    signatures: [{ signerPem: Buffer.from(signer.chainPem), signature }],
  };
}

test("roots are taken that an issuer of a trusted root has signed, and are there after a restart", async () => {
  const below = await ours.intermediate("below");
  for (const signer of [ours, below]) {
    const taken = acceptRoots(held, told(signer), at)!;
    expect(pinsOf(taken.caPem)).toEqual([ours.pin, next.pin]);
    saveRoots(directory, taken);
    expect(loadRoots(directory)).toEqual(taken);
  }
  const only = acceptRoots(held, told(ours, { pem: next.pem }), at)!;
  expect(pinsOf(only.caPem)).toEqual([next.pin]);
});

test("roots that come twice, late or in another order are passed over: what is not newer, whoever has signed it", () => {
  for (const revision of [0, 4, 5]) expect(acceptRoots(held, told(ours, { revision }), at)).toBeUndefined();
});

test("roots are refused that are signed by a stranger, by a leaf, for others, or changed on the way", async () => {
  const leaf = await ours.leaf("gateway");
  const below = await strangers.intermediate("below");
  const changed = { ...told(ours), caPem: Buffer.from(strangers.pem) };
  const bad = [
    told(strangers, { pem: strangers.pem }),
    told(next),
    told(leaf),
    told({ ...leaf, chainPem: leaf.chainPem + ours.pem }),
    // Names our root above itself, and is not below it.
    told({ ...strangers, chainPem: strangers.pem + ours.pem }),
    told({ ...below, chainPem: below.chainPem + ours.pem }),
    // The certificate of ours, and a signature of theirs.
    told({ ...strangers, chainPem: ours.pem }),
    told(ours, { domain: "elsewhere.test" }),
    changed,
    { ...told(ours), issuerPin: strangers.pin },
    { ...told(ours), revision: "7" },
    { ...told(ours), signatures: [] },
  ];
  for (const roots of bad)
    expect(() => acceptRoots(held, roots, at)).toThrow(/no issuer that this agent trusts/);
});

test("what is signed and no root is refused", async () => {
  const leaf = await ours.leaf("gateway");
  expect(() => acceptRoots(held, told(ours, { pem: leaf.chainPem }), at)).toThrow(/is no root/);
  const below = await ours.intermediate("below");
  expect(() => acceptRoots(held, told(ours, { pem: below.chainPem }), at)).toThrow(/is no root/);
  expect(() => acceptRoots(held, told(ours, { pem: "none" }), at)).toThrow(/they are 0/);
});

test("a certificate is vouched for directly or over intermediates that are CAs, and is known by who issued it", async () => {
  const below = await ours.intermediate("below");
  const caPem = held.caPem;
  const [direct, deep] = [await ours.leaf("a1"), await below.leaf("a1")];
  const fake = await strangers.leaf("a1");
  const vouched = (chainPem: string) => isVouchedFor(Buffer.from(chainPem), caPem, at.nowMs);
  expect([direct.chainPem, deep.chainPem].map(vouched)).toEqual([true, true]);
  // Without its intermediate, of a stranger, below a leaf.
  const alone = new X509Certificate(deep.chainPem).toString();
  expect([alone, fake.chainPem, fake.chainPem + direct.chainPem].map(vouched)).toEqual([false, false, false]);
  const from = (chainPem: string, issuerPin: string) =>
    isFromIssuer(Buffer.from(chainPem), { revision: 6, issuerPin, caPem });
  expect(from(direct.chainPem, "")).toBe(true);
  expect(from(direct.chainPem, ours.pin)).toBe(true);
  expect(from(direct.chainPem, below.pin)).toBe(false);
  expect(from(deep.chainPem, below.pin)).toBe(true);
  expect(from(deep.chainPem, ours.pin)).toBe(false);
});
