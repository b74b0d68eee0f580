/**
 * The signature of a site's policy: by a key of the site's team, over the digest of the policy, a number that grows with
 * each version, and the environment that it is for. It lies beside the policy, as `FILE.sig`.
 */
import { createPrivateKey, createPublicKey, type KeyObject, sign, verify } from "node:crypto";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { canonicalJson } from "../../shared/model/canonical.ts";
import { Digest, Name } from "../../shared/model/names.ts";

/** Signed is: purpose, zero byte, canonical JSON (RFC 8785) of what is sealed. Ed25519 (RFC 8032). */
const SEAL_PURPOSE = "insitu.site-policy.v1";

const Sealed = z.strictObject({
  v: z.literal(1),
  environment: Name,
  /** Of each version that the team signs for the environment, larger than of the one before. */
  serial: z.int().min(1),
  /** As `LoadedPolicy.digest`: of the policy and of its Cedar part. */
  digest: Digest,
});
export type Sealed = z.infer<typeof Sealed>;

const Seal = z.strictObject({ ...Sealed.shape, /** Base64. */ signature: z.base64().max(128) });

export function sealPath(policyPath: string): string {
  return `${policyPath}.sig`;
}

/** @throws request.invalid unless the text is a private key of Ed25519 in PEM, not encrypted */
export function readPrivateKey(pem: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch (err) {
    throw new InsituError(
      "request.invalid",
      "the key is no private key in PEM, or needs a passphrase; make one with: openssl genpkey -algorithm ed25519 -out team.key; of one with a passphrase: openssl pkey -in team.key | insitu-agent policy sign --key - …",
      { cause: err },
    );
  }
  if (key.asymmetricKeyType === "ed25519") return key;
  throw new InsituError("request.invalid", `the key is of ${key.asymmetricKeyType}; it must be of Ed25519`);
}

/**
 * One or several, so that a new one can be trusted before the old one goes.
 *
 * @throws request.invalid unless the text is one or more public keys of Ed25519 in PEM
 */
export function readPublicKeys(file: string, pem: string): KeyObject[] {
  if (pem.includes("PRIVATE KEY"))
    throw new InsituError(
      "request.invalid",
      `${file} holds a private key, which has no business on this host; give the public one: openssl pkey -in team.key -pubout`,
    );
  const blocks = pem.match(/-----BEGIN PUBLIC KEY-----[^-]+-----END PUBLIC KEY-----/g) ?? [];
  const keys = blocks.map((block) => {
    try {
      return createPublicKey(block);
    } catch {
      return undefined; // said below, with the file
    }
  });
  if (keys.length > 0 && keys.every((key) => key?.asymmetricKeyType === "ed25519"))
    return keys as KeyObject[];
  throw new InsituError("request.invalid", `${file} must hold public keys of Ed25519 in PEM, one or more`);
}

/** The text of the file beside the policy. */
export function sealText(sealed: Sealed, key: KeyObject): string {
  const signature = sign(null, signedBytes(sealed), key).toString("base64");
  return `${JSON.stringify({ ...sealed, signature }, null, 2)}\n`;
}

/** What the text says, and whether anybody signed it is not looked at. Undefined: it is no seal. */
export function readSeal(text: string): Sealed | undefined {
  const seal = parseSeal(text);
  if (seal === undefined) return undefined;
  const { signature: _, ...sealed } = seal;
  return sealed;
}

/** @throws request.invalid, with what is wrong, unless one of the keys signed exactly this policy for this environment */
export function openSeal(
  file: string,
  text: string,
  { keys, environment, digest }: { keys: readonly KeyObject[]; environment: string; digest: string },
): Sealed {
  const seal = parseSeal(text);
  const refuse = (message: string): InsituError => new InsituError("request.invalid", `${file}: ${message}`);
  if (seal === undefined) throw refuse("it is no signature of a site policy");
  const { signature, ...sealed } = seal;
  const bytes = signedBytes(sealed);
  if (!keys.some((key) => verify(null, bytes, key, Buffer.from(signature, "base64"))))
    throw refuse("the signature is not of a key that this agent was given");
  if (sealed.environment !== environment)
    throw refuse(`it was signed for the environment ${sealed.environment}, and this is ${environment}`);
  if (sealed.digest !== digest)
    throw refuse(
      `it was signed for a policy with the digest ${sealed.digest}, and this one has ${digest}: it was changed and not signed again`,
    );
  return sealed;
}

function signedBytes({ v, environment, serial, digest }: Sealed): Buffer {
  return Buffer.from(`${SEAL_PURPOSE}\0${canonicalJson({ v, environment, serial, digest })}`);
}

function parseSeal(text: string): z.infer<typeof Seal> | undefined {
  try {
    return Seal.parse(JSON.parse(text));
  } catch {
    return undefined; // the caller says of which file
  }
}
