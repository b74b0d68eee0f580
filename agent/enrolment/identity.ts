/** The agent's identity on disk: key, certificate, roots and who it is. Made by enrolment, read at every start. */
import { createPrivateKey, generateKeyPairSync, X509Certificate } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";

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
  caPem: Buffer;
  offerPublicKeyPem: Buffer;
  notAfterMs: number;
}

export type NewIdentity = Omit<Identity, "id" | "notAfterMs">;

/** P-256, as Node names it. */
const CURVE = "prime256v1";

const FILES = {
  key: "key.pem",
  certificate: "certificate.pem",
  ca: "ca.pem",
  offerKey: "offer-key.pem",
  who: "identity.json",
};

/** Undefined before enrolment. @throws internal when what is on disk does not fit together */
export function loadIdentity(stateDir: string): Identity | undefined {
  const directory = join(stateDir, "identity");
  if (!existsSync(join(directory, FILES.who))) return undefined;
  try {
    const who = IdentityFile.parse(JSON.parse(readFileSync(join(directory, FILES.who), "utf8")));
    const read = (file: string): Buffer => readFileSync(join(directory, file));
    const [keyPem, certificatePem] = [read(FILES.key), read(FILES.certificate)];
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
      caPem: read(FILES.ca),
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

/**
 * The key of the identity to come. It is on disk before it is used for the first time: a join token knows by it who
 * has spent a use, so whoever comes again after a lost answer or a crash needs no other token.
 */
export function enrolmentKey(stateDir: string): Buffer {
  const kept = readKey(join(stateDir, "identity", FILES.key));
  if (kept !== undefined) return kept;
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: CURVE });
  const keyPem = Buffer.from(privateKey.export({ type: "pkcs8", format: "pem" }));
  writerInto(stateDir)(FILES.key, keyPem);
  return keyPem;
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

type Write = (file: string, content: Buffer | string) => void;

function writerInto(stateDir: string): Write {
  const directory = join(stateDir, "identity");
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  return (file, content) => {
    writeFileSync(join(directory, `.${file}`), content, { mode: 0o600, flush: true } as Parameters<
      typeof writeFileSync
    >[2]);
    renameSync(join(directory, `.${file}`), join(directory, file));
  };
}

/** Written so that a crash leaves either no identity or a whole one. */
export function saveIdentity(stateDir: string, identity: NewIdentity): void {
  const write = writerInto(stateDir);
  write(FILES.key, identity.keyPem);
  write(FILES.certificate, identity.certificatePem);
  write(FILES.ca, identity.caPem);
  write(FILES.offerKey, identity.offerPublicKeyPem);
  const { environment, name, gateway, trustDomain } = identity;
  write(FILES.who, `${JSON.stringify({ v: 1, environment, name, gateway, trustDomain }, null, 2)}\n`);
}
