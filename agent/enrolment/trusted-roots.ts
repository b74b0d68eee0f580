/**
 * Which roots this agent trusts. Those of its enrolment, until the control plane names others, signed by an issuer that
 * leads to a root which is trusted already: whoever has taken over a gateway alone cannot name any.
 */
import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Roots__Output } from "../../shared/wire/gen/insitu/agent/v1/Roots.ts";
import { type TrustedRoots as SignedText, verifyRoots } from "../../shared/wire/roots.ts";
import { pinOf } from "../network/shown-chain.ts";
import { writerInto } from "./identity-files.ts";

const CERTIFICATES = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g;
const ROOTS_MAX = 64;
const FILE = "roots.json";

/** `identity/roots.json`; none until the roots have changed for the first time. */
const RootsFile = z.object({
  v: z.literal(1),
  revision: z.int().min(1),
  issuerPin: z.string(),
  caPem: z.string(),
});

export interface HeldRoots {
  /** 0: those of the enrolment. */
  revision: number;
  /** Pin of the key that signs certificates of agents; empty: not known. */
  issuerPin: string;
  caPem: Buffer;
}

/** Undefined when the roots of the enrolment hold. @throws Error when the file is damaged */
export function loadRoots(directory: string): HeldRoots | undefined {
  const path = join(directory, FILE);
  if (!existsSync(path)) return undefined;
  const { revision, issuerPin, caPem } = RootsFile.parse(JSON.parse(readFileSync(path, "utf8")));
  return { revision, issuerPin, caPem: Buffer.from(caPem) };
}

/** `ca.pem` follows, for people: the roots in force are those of this file. */
export function saveRoots(directory: string, { caPem, ...rest }: HeldRoots): void {
  const write = writerInto(directory);
  write(FILE, `${JSON.stringify({ v: 1, ...rest, caPem: caPem.toString("utf8") }, null, 2)}\n`);
  write("ca.pem", caPem);
}

/** Pins of the roots in PEM. */
export function pinsOf(caPem: Buffer): string[] {
  return certificatesOf(caPem).map(pinOf);
}

/**
 * The roots to trust from now on; undefined for those that it has, or had before. Pure.
 *
 * @throws InsituError `auth.denied` when nobody that is trusted has signed them, or they are none
 */
export function acceptRoots(
  held: HeldRoots,
  told: Roots__Output,
  at: { trustDomain: string; nowMs: number },
): HeldRoots | undefined {
  const revision = Number(told.revision);
  if (!Number.isSafeInteger(revision) || revision <= held.revision) return undefined;
  const refuse = (why: string): never => {
    throw new InsituError("auth.denied", `the roots that the control plane names are not taken: ${why}`);
  };
  const pem = Buffer.from(told.caPem).toString("utf8");
  const text: SignedText = { trustDomain: at.trustDomain, revision, issuerPin: told.issuerPin, pem };
  const trusted = certificatesOf(held.caPem);
  const isSigned = told.signatures.slice(0, ROOTS_MAX).some(({ signerPem, signature }) => {
    const [signer, ...above] = certificatesOf(Buffer.from(signerPem));
    return (
      signer !== undefined &&
      leadsTo([signer, ...above], trusted, at.nowMs) &&
      verifyRoots(signer.publicKey, text, signature)
    );
  });
  if (!isSigned) refuse("no issuer that this agent trusts has signed them");
  const roots = certificatesOf(Buffer.from(pem));
  if (roots.length === 0 || roots.length > ROOTS_MAX) refuse(`they are ${roots.length}`);
  for (const root of roots)
    if (!root.ca || !root.verify(root.publicKey)) refuse(`${root.subject} is no root`);
  return { revision, issuerPin: told.issuerPin, caPem: Buffer.from(pem) };
}

/** Whether the issuer of the certificate is the one that is to be, or nothing is known of that. */
export function isFromIssuer(certificatePem: Buffer, { issuerPin, caPem }: HeldRoots): boolean {
  if (issuerPin === "") return true;
  const [leaf, ...above] = certificatesOf(certificatePem);
  const issuer = [...above, ...certificatesOf(caPem)].find(({ publicKey }) => leaf?.verify(publicKey));
  return issuer !== undefined && pinOf(issuer) === issuerPin;
}

/** Whether a certificate, with what comes after it, leads to one of the roots: each is a CA, and good now. */
export function isVouchedFor(certificatePem: Buffer, caPem: Buffer, nowMs: number): boolean {
  const [leaf, ...above] = certificatesOf(certificatePem);
  if (leaf === undefined) return false;
  const roots = certificatesOf(caPem);
  if (roots.some((root) => leaf.verify(root.publicKey))) return true;
  const [issuer] = above;
  return issuer !== undefined && leaf.verify(issuer.publicKey) && leadsTo(above, roots, nowMs);
}

function leadsTo(
  chain: readonly X509Certificate[],
  roots: readonly X509Certificate[],
  nowMs: number,
): boolean {
  for (const [at, certificate] of chain.entries()) {
    if (!certificate.ca || Date.parse(certificate.validTo) <= nowMs) return false;
    if (roots.some((root) => root.raw.equals(certificate.raw) || certificate.verify(root.publicKey)))
      return true;
    const above = chain[at + 1];
    if (above === undefined || !certificate.verify(above.publicKey)) return false;
  }
  return false;
}

/** Empty when there is none. @throws Error when one cannot be read */
function certificatesOf(pem: Buffer): X509Certificate[] {
  return (pem.toString("utf8").match(CERTIFICATES) ?? []).map((text) => new X509Certificate(text));
}
