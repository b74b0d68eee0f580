/** The agent's identity on disk: key, certificate, roots and who it is. Made by enrolment, read at every start. */
import { createPrivateKey, generateKeyPairSync, X509Certificate } from "node:crypto";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { writerInto } from "./identity-files.ts";
import { loadRoots } from "./trusted-roots.ts";

const IdentityFile = z.object({
  v: z.literal(1),
  environment: Name,
  name: Name,
  gateway: z.string(),
  trustDomain: z.string(),
});

export interface Identity {
  environment: string;
  name: string;
  /** `environment/name` */
  id: string;
  gateway: string;
  trustDomain: string;
  keyPem: Buffer;
  certificatePem: Buffer;
  /** Roots, one or more. */
  caPem: Buffer;
  /** Which those are: revision 0 is what the enrolment gave. See trusted-roots.ts. */
  roots: { revision: number; issuerPin: string };
  offerPublicKeyPem: Buffer;
  notAfterMs: number;
}

export type NewIdentity = Omit<Identity, "id" | "notAfterMs" | "roots">;

/** P-256, as Node names it. */
const CURVE = "prime256v1";

const FILES = {
  key: "key.pem",
  certificate: "certificate.pem",
  ca: "ca.pem",
  offerKey: "offer-key.pem",
  who: "identity.json",
  roots: "roots.json",
  /** Key and certificate in one, while they take the place of the former two. */
  pair: "pair.pem",
};

/** Undefined before enrolment. @throws internal when what is on disk does not fit together */
export function loadIdentity(stateDir: string): Identity | undefined {
  const directory = join(stateDir, "identity");
  if (!existsSync(join(directory, FILES.who))) return undefined;
  try {
    const who = IdentityFile.parse(JSON.parse(readFileSync(join(directory, FILES.who), "utf8")));
    const read = (file: string): Buffer => readFileSync(join(directory, file));
    const { keyPem, certificatePem } = unfinishedPair(directory) ?? {
      keyPem: read(FILES.key),
      certificatePem: read(FILES.certificate),
    };
    const certificate = new X509Certificate(certificatePem);
    if (!certificate.checkPrivateKey(createPrivateKey(keyPem)))
      throw new Error("key and certificate do not belong together");
    return {
      environment: who.environment,
      name: who.name,
      id: `${who.environment}/${who.name}`,
      gateway: who.gateway,
      trustDomain: who.trustDomain,
      keyPem,
      certificatePem,
      ...rootsIn(directory, () => read(FILES.ca)),
      offerPublicKeyPem: read(FILES.offerKey),
      notAfterMs: Date.parse(certificate.validTo),
    };
  } catch (err) {
    const message = err instanceof Error ? err.message : String(err);
    const advice = "remove that directory and enrol again with a new join token";
    throw new InsituError("internal", `the identity in ${directory} is damaged (${message}); ${advice}`, {
      cause: err,
    });
  }
}

function rootsIn(directory: string, enrolled: () => Buffer): Pick<Identity, "caPem" | "roots"> {
  const kept = loadRoots(directory);
  if (kept === undefined) return { caPem: enrolled(), roots: { revision: 0, issuerPin: "" } };
  const { caPem, ...roots } = kept;
  return { caPem, roots };
}

/**
 * The key of the identity to come. It is on disk before it is used for the first time: a join token knows by it who
 * has spent a use, so whoever comes again after a lost answer or a crash needs no other token.
 */
export function enrolmentKey(stateDir: string): Buffer {
  const kept = readKey(join(stateDir, "identity", FILES.key));
  if (kept !== undefined) return kept;
  const keyPem = newKey();
  writerInto(join(stateDir, "identity"))(FILES.key, keyPem);
  return keyPem;
}

/** EC P-256, PKCS#8 in PEM. */
export function newKey(): Buffer {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: CURVE });
  return Buffer.from(privateKey.export({ type: "pkcs8", format: "pem" }));
}

/** Undefined when there is none that a request can be made with. */
function readKey(file: string): Buffer | undefined {
  try {
    const keyPem = readFileSync(file);
    return createPrivateKey(keyPem).asymmetricKeyDetails?.namedCurve === CURVE ? keyPem : undefined;
  } catch {
    return undefined; // none yet, or damaged: nothing was enrolled with it, or another use of the token is spent
  }
}

/** Written so that a crash leaves either no identity or a whole one. */
export function saveIdentity(stateDir: string, identity: NewIdentity): void {
  const write = writerInto(join(stateDir, "identity"));
  // Of an identity that was here before: another control plane's, perhaps.
  rmSync(join(stateDir, "identity", FILES.roots), { force: true });
  write(FILES.key, identity.keyPem);
  write(FILES.certificate, identity.certificatePem);
  write(FILES.ca, identity.caPem);
  write(FILES.offerKey, identity.offerPublicKeyPem);
  const { environment, name, gateway, trustDomain } = identity;
  write(FILES.who, `${JSON.stringify({ v: 1, environment, name, gateway, trustDomain }, null, 2)}\n`);
}

interface Pair {
  keyPem: Buffer;
  certificatePem: Buffer;
}

/**
 * Puts a renewed key and certificate in the place of the former ones. They are two files, and a crash may come between
 * any two writes: from the first one on, the next start finds the new pair and finishes.
 */
export function replacePair(stateDir: string, pair: Pair): void {
  for (const step of replacementSteps(join(stateDir, "identity"), pair)) step();
}

/** Each may be the last, and each may be done again. */
export function replacementSteps(directory: string, { keyPem, certificatePem }: Pair): (() => void)[] {
  const write = writerInto(directory);
  return [
    () => write(FILES.pair, Buffer.concat([keyPem, certificatePem])),
    () => write(FILES.key, keyPem),
    () => write(FILES.certificate, certificatePem),
    () => rmSync(join(directory, FILES.pair)),
  ];
}

/** What a crash has left of a replacement; it is finished on the way. */
function unfinishedPair(directory: string): Pair | undefined {
  const file = join(directory, FILES.pair);
  if (!existsSync(file)) return undefined;
  const text = readFileSync(file, "utf8");
  const at = text.indexOf("-----BEGIN CERTIFICATE-----");
  if (at < 0) throw new Error(`${FILES.pair} holds no certificate`);
  const pair = { keyPem: Buffer.from(text.slice(0, at)), certificatePem: Buffer.from(text.slice(at)) };
  try {
    for (const step of replacementSteps(directory, pair).slice(1)) step();
  } catch {
    // A full disk, for example: the pair is there, and the next start finishes.
  }
  return pair;
}
