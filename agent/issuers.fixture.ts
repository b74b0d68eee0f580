/** Roots, intermediates and leafs as a test wants them. */
import "reflect-metadata"; // before @peculiar/x509
import { webcrypto, X509Certificate } from "node:crypto";
import * as x509 from "@peculiar/x509";
import { systemClock } from "../shared/system.ts";
import { pinOf } from "./network/shown-chain.ts";

const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

export interface TestLeaf {
  keyPem: string;
  /** Itself, then what is above it, without the root. */
  chainPem: string;
}

export interface TestIssuer extends TestLeaf {
  /** Its own certificate. */
  pem: string;
  pin: string;
  intermediate(name: string): Promise<TestIssuer>;
  leaf(name: string): Promise<TestLeaf>;
  /** For the key of the request, with this URI as its name. */
  sign(csrDer: Uint8Array, uri: string): Promise<string>;
}

/** A root's chain is the root. */
export async function newRoot(name: string): Promise<TestIssuer> {
  const keys = await webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);
  return await issuer(name, { keys, subject: `CN=${name}` }, keys, "");
}

interface Above {
  keys: webcrypto.CryptoKeyPair;
  subject: string;
}

async function issuer(
  name: string,
  above: Above,
  keys: webcrypto.CryptoKeyPair,
  abovePem: string,
): Promise<TestIssuer> {
  const pem = await certificate({ name, above, keys, ca: true });
  const chainPem = pem + abovePem;
  const self = { keys, subject: `CN=${name}` };
  const below = abovePem === "" && above.keys === keys ? "" : chainPem;
  const fresh = () => webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);
  return {
    pem,
    chainPem,
    pin: pinOf(new X509Certificate(pem)),
    keyPem: await pemOf(keys),
    intermediate: async (other) => await issuer(other, self, await fresh(), below),
    leaf: async (other) => {
      const own = await fresh();
      const leaf = await certificate({ name: other, above: self, keys: own, ca: false });
      return { keyPem: await pemOf(own), chainPem: leaf + below };
    },
    sign: async (csrDer, uri) => {
      const { publicKey } = new x509.Pkcs10CertificateRequest(new Uint8Array(csrDer));
      return (await certificate({ name: "a1", above: self, keys: { publicKey }, ca: false, uri })) + below;
    },
  };
}

async function certificate(of: {
  name: string;
  above: Above;
  keys: { publicKey: webcrypto.CryptoKey | x509.PublicKey };
  ca: boolean;
  uri?: string;
}): Promise<string> {
  const nowMs = systemClock.wallMs();
  const made = await x509.X509CertificateGenerator.create(
    {
      serialNumber: "01",
      subject: `CN=${of.name}`,
      issuer: of.above.subject,
      notBefore: new Date(nowMs - 60_000),
      notAfter: new Date(nowMs + 4 * 3_600_000),
      publicKey: of.keys.publicKey,
      signingKey: of.above.keys.privateKey,
      signingAlgorithm: P256,
      extensions: [
        new x509.BasicConstraintsExtension(of.ca, undefined, true),
        ...(of.uri ? [new x509.SubjectAlternativeNameExtension([{ type: "url", value: of.uri }])] : []),
      ],
    },
    webcrypto as never,
  );
  return `${made.toString("pem")}\n`;
}

async function pemOf({ privateKey }: webcrypto.CryptoKeyPair): Promise<string> {
  return x509.PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", privateKey), "PRIVATE KEY");
}
