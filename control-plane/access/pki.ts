/**
 * One issuer of certificates for the gateway and its agents: a root, or an intermediate below one that is kept elsewhere.
 *
 * ECDSA P-256. What an agent's certificate says is decided here: of its request only the public key is used.
 */
import "reflect-metadata"; // @peculiar/x509 needs it first, and does not bring it along.
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  randomBytes,
  webcrypto,
  X509Certificate,
} from "node:crypto";
import { join } from "node:path";
import * as x509 from "@peculiar/x509";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import { loadOrCreateSecret, loadSecret } from "./secret-file.ts";
import { type AgentName, TRUST_DOMAIN_PATTERN } from "./spiffe.ts";

export interface CertificatePair {
  /** Leaf, intermediates, then the root: an agent that joins compares the root with its pin. */
  chainPem: string;
  keyPem: string;
  notAfterMs: number;
}

export interface AgentCertificate {
  /** Leaf, then intermediates. */
  certificatePem: string;
  notAfterMs: number;
  /** SHA-256 of the public key's SPKI, hexadecimal: what the registry knows the agent by. */
  spkiSha256: string;
}

/** A checked certificate request: its sender holds the private key. */
export interface AgentKey {
  spkiSha256: string;
  publicKey: x509.PublicKey;
}

interface Names {
  dns: readonly string[];
  ips: readonly string[];
}

export interface Pki {
  readonly trustDomain: string;
  /** Roots to trust, one or more. */
  readonly caPem: string;
  /** `sha256:` and the hexadecimal SHA-256 of the SPKI of the root that server certificates lead to. */
  caPin(): string;
  /** For `localhost`, `127.0.0.1`, `::1` and the names given. */
  issueServerCertificate(names: Names): Promise<CertificatePair>;
  /** The same for one that also connects to its like, and shows the certificate there. */
  issuePeerCertificate(names: Names): Promise<CertificatePair>;
  /** @throws InsituError `request.invalid` when it is malformed, not signed by its own key, or of a kind we do not take. */
  readRequest(csrDer: Uint8Array): Promise<AgentKey>;
  /** @param validForMs instead of the time that the authority was opened with */
  issueAgentCertificate(agent: AgentName, key: AgentKey, validForMs?: number): Promise<AgentCertificate>;
}

/** A root key, or that of an intermediate, with its certificates. */
export interface IssuerPair {
  /** EC P-256, PKCS#8. */
  keyPem: string;
  /** Of the key first; then whatever leads to the root, which is last. */
  chainPem: string;
}

export interface PkiOptions {
  /** Holds `ca.key.pem` and `ca.crt.pem`. */
  directory: string;
  trustDomain: string;
  clock: Clock;
  agentValidityMs?: number;
  serverValidityMs?: number;
}

const DAY_MS = 86_400_000;
/** Hosts whose clocks are a little behind take the certificate at once. */
const BACKDATE_MS = 5 * 60_000;
const CA_VALIDITY_MS = 10 * 365 * DAY_MS;
const AGENT_VALIDITY_MS = 30 * DAY_MS;
const SERVER_VALIDITY_MS = 90 * DAY_MS;
const CSR_MAX_BYTES = 8 * 1024;
const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";

/** @throws InsituError `internal` when the files in the directory are damaged or belong to different roots. */
export async function loadOrCreatePki(options: PkiOptions): Promise<Pki> {
  if (!TRUST_DOMAIN_PATTERN.test(options.trustDomain)) {
    throw new InsituError(
      "request.invalid",
      `the trust domain ${options.trustDomain} is not a lower-case DNS name`,
    );
  }
  const keyPath = join(options.directory, "ca.key.pem");
  const certificatePath = join(options.directory, "ca.crt.pem");
  if ((await loadSecret(keyPath)) === undefined && (await loadSecret(certificatePath)) !== undefined) {
    throw new InsituError(
      "internal",
      `${certificatePath} is there but its key ${keyPath} is not: restore the key from a backup, or delete the certificate to begin a new authority (every agent must then join again)`,
    );
  }
  const keyPem = await loadOrCreateSecret(keyPath, createIssuerKey);
  const keys = await importKeys(keyPath, keyPem);
  const caPem = await loadOrCreateSecret(certificatePath, () => issueRoot(keys, options));
  checkRoot({ keyPem, caPem, path: certificatePath, nowMs: options.clock.wallMs() });
  return new CertificateAuthority(keys, caPem, options);
}

/** A new root of its own name, which nothing trusts yet. */
export async function createRoot(options: Pick<PkiOptions, "trustDomain" | "clock">): Promise<IssuerPair> {
  const keyPem = await createIssuerKey();
  const keys = await importKeys("the new key", keyPem);
  // Two roots of one name would leave it to each TLS library which of them it tries.
  const suffix = ` ${new Date(options.clock.wallMs()).toISOString().slice(0, 16)}Z`;
  return { keyPem, chainPem: await issueRoot(keys, options, suffix) };
}

/** EC P-256, PKCS#8 in PEM. */
export async function createIssuerKey(): Promise<string> {
  const keys = await webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);
  return pem("PRIVATE KEY", await webcrypto.subtle.exportKey("pkcs8", keys.privateKey));
}

/** What an operator has signed with a root of their own; PEM. @param id of the key, for the name */
export async function requestForIssuer(
  keyPem: string,
  { trustDomain, id }: { trustDomain: string; id: string },
): Promise<string> {
  const request = await x509.Pkcs10CertificateRequestGenerator.create(
    {
      name: [{ O: ["Insitu"] }, { CN: [`Insitu issuer ${id} of ${trustDomain}`] }],
      keys: await importKeys("the key of the request", keyPem),
      signingAlgorithm: P256,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      ],
    },
    webcrypto,
  );
  return `${request.toString("pem")}\n`;
}

/** @param path names the key in errors @throws InsituError `internal` when the two do not belong together */
export async function openIssuer(pair: IssuerPair, path: string, options: PkiOptions): Promise<Pki> {
  const keys = await importKeys(path, pair.keyPem);
  checkRoot({ keyPem: pair.keyPem, caPem: pair.chainPem, path, nowMs: options.clock.wallMs() });
  return new CertificateAuthority(keys, pair.chainPem, options);
}

class CertificateAuthority implements Pki {
  readonly trustDomain: string;
  readonly caPem: string;
  readonly #keys: webcrypto.CryptoKeyPair;
  readonly #issuer: x509.X509Certificate;
  readonly #root: x509.X509Certificate;
  /** Between a leaf and the root. */
  readonly #intermediatesPem: string;
  /** The end of the one of the chain that ends first. */
  readonly #notAfterMs: number;
  readonly #options: PkiOptions;

  constructor(keys: webcrypto.CryptoKeyPair, chainPem: string, options: PkiOptions) {
    const chain = readChain(chainPem);
    this.trustDomain = options.trustDomain;
    this.#issuer = chain[0]!;
    this.#root = chain.at(-1)!;
    this.caPem = chain.length === 1 ? chainPem : `${this.#root.toString("pem")}\n`;
    this.#intermediatesPem = chain
      .slice(0, -1)
      .map((certificate) => `${certificate.toString("pem")}\n`)
      .join("");
    this.#notAfterMs = Math.min(...chain.map(({ notAfter }) => notAfter.getTime()));
    this.#keys = keys;
    this.#options = options;
  }

  caPin(): string {
    return `sha256:${sha256(this.#root.publicKey.rawData)}`;
  }

  issueServerCertificate(names: Names): Promise<CertificatePair> {
    return this.#issuePair(names, [SERVER_AUTH]);
  }

  issuePeerCertificate(names: Names): Promise<CertificatePair> {
    return this.#issuePair(names, [SERVER_AUTH, CLIENT_AUTH]);
  }

  async #issuePair(names: Names, usages: string[]): Promise<CertificatePair> {
    const keys = await webcrypto.subtle.generateKey(P256, true, ["sign", "verify"]);
    const leaf = await this.#issue({
      publicKey: keys.publicKey,
      subject: [{ CN: ["insitu gateway"] }],
      san: [...new Set(["localhost", ...names.dns])]
        .map((value): x509.JsonGeneralName => ({ type: "dns", value }))
        .concat([...new Set(["127.0.0.1", "::1", ...names.ips])].map((value) => ({ type: "ip", value }))),
      usages,
      validityMs: this.#options.serverValidityMs ?? SERVER_VALIDITY_MS,
    });
    const keyPem = pem("PRIVATE KEY", await webcrypto.subtle.exportKey("pkcs8", keys.privateKey));
    const chainPem = `${leaf.toString("pem")}\n${this.#intermediatesPem}${this.caPem}`;
    checkPair(leaf.toString("pem"), keyPem);
    return { chainPem, keyPem, notAfterMs: leaf.notAfter.getTime() };
  }

  async readRequest(csrDer: Uint8Array): Promise<AgentKey> {
    if (csrDer.length > CSR_MAX_BYTES) {
      throw new InsituError(
        "request.invalid",
        `the certificate request is larger than ${CSR_MAX_BYTES} bytes`,
      );
    }
    let publicKey: x509.PublicKey;
    let proven: boolean;
    try {
      const request = new x509.Pkcs10CertificateRequest(new Uint8Array(csrDer));
      publicKey = request.publicKey;
      refuseOddKey(publicKey);
      proven = await request.verify();
    } catch (err) {
      if (err instanceof InsituError) throw err;
      throw new InsituError("request.invalid", "the certificate request is not PKCS#10 in DER", {
        cause: err,
      });
    }
    if (!proven) {
      throw new InsituError(
        "request.invalid",
        "the certificate request is not signed by the key that it names",
      );
    }
    return { publicKey, spkiSha256: sha256(publicKey.rawData) };
  }

  async issueAgentCertificate(
    agent: AgentName,
    key: AgentKey,
    validForMs = this.#options.agentValidityMs ?? AGENT_VALIDITY_MS,
  ): Promise<AgentCertificate> {
    const leaf = await this.#issue({
      publicKey: key.publicKey,
      subject: [{ OU: [agent.environment] }, { CN: [agent.name] }],
      san: [{ type: "url", value: agentUri(this.trustDomain, agent) }],
      usages: [CLIENT_AUTH],
      validityMs: validForMs,
    });
    return {
      certificatePem: `${leaf.toString("pem")}\n${this.#intermediatesPem}`,
      notAfterMs: leaf.notAfter.getTime(),
      spkiSha256: key.spkiSha256,
    };
  }

  async #issue(leaf: {
    publicKey: x509.PublicKey | webcrypto.CryptoKey;
    subject: x509.JsonName;
    san: x509.JsonGeneralNames;
    usages: string[];
    validityMs: number;
  }): Promise<x509.X509Certificate> {
    const nowMs = this.#options.clock.wallMs();
    return await x509.X509CertificateGenerator.create(
      {
        serialNumber: serial(),
        subject: leaf.subject,
        issuer: this.#issuer.subject,
        notBefore: new Date(nowMs - BACKDATE_MS),
        // Never beyond its issuers: a leaf that outlives them is refused by both sides anyway.
        notAfter: new Date(Math.min(nowMs + leaf.validityMs, this.#notAfterMs)),
        publicKey: leaf.publicKey,
        signingKey: this.#keys.privateKey,
        signingAlgorithm: P256,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension(leaf.usages),
          new x509.SubjectAlternativeNameExtension(leaf.san),
          await x509.AuthorityKeyIdentifierExtension.create(this.#issuer.publicKey, false, webcrypto),
          await x509.SubjectKeyIdentifierExtension.create(leaf.publicKey, false, webcrypto),
        ],
      },
      webcrypto,
    );
  }
}

/** Certificates of a PEM text, in order. @throws Error when one cannot be read */
function readChain(chainPem: string): x509.X509Certificate[] {
  return x509.PemConverter.decode(chainPem).map((der) => new x509.X509Certificate(der));
}

async function issueRoot(
  keys: webcrypto.CryptoKeyPair,
  options: Pick<PkiOptions, "trustDomain" | "clock">,
  suffix = "",
): Promise<string> {
  const nowMs = options.clock.wallMs();
  const root = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: serial(),
      name: [{ O: ["Insitu"] }, { CN: [`Insitu root of ${options.trustDomain}${suffix}`] }],
      notBefore: new Date(nowMs - BACKDATE_MS),
      notAfter: new Date(nowMs + CA_VALIDITY_MS),
      keys,
      signingAlgorithm: P256,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey, false, webcrypto),
      ],
    },
    webcrypto,
  );
  return `${root.toString("pem")}\n`;
}

async function importKeys(path: string, keyPem: string): Promise<webcrypto.CryptoKeyPair> {
  try {
    const privateKey = createPrivateKey(keyPem);
    const pkcs8 = privateKey.export({ type: "pkcs8", format: "der" });
    const spki = createPublicKey(privateKey).export({ type: "spki", format: "der" });
    return {
      privateKey: await webcrypto.subtle.importKey("pkcs8", pkcs8, P256, false, ["sign"]),
      publicKey: await webcrypto.subtle.importKey("spki", spki, P256, true, ["verify"]),
    };
  } catch (err) {
    throw new InsituError(
      "internal",
      `${path} is not an ECDSA P-256 private key in PEM; restore it from a backup`,
      {
        cause: err,
      },
    );
  }
}

function checkRoot(root: { keyPem: string; caPem: string; path: string; nowMs: number }): void {
  try {
    checkPair(root.caPem, root.keyPem);
  } catch (err) {
    throw new InsituError(
      "internal",
      `${root.path} is damaged or belongs to another key; restore both from a backup`,
      {
        cause: err,
      },
    );
  }
  const notAfterMs = new Date(new X509Certificate(root.caPem).validTo).getTime();
  if (notAfterMs <= root.nowMs) {
    throw new InsituError(
      "internal",
      `the root certificate ${root.path} expired ${new Date(notAfterMs).toISOString()}: check this host's clock, or begin a new authority`,
    );
  }
}

/** A pair that does not match would make the server drop every new connection, so it is never used. */
function checkPair(certificatePem: string, keyPem: string): void {
  if (!new X509Certificate(certificatePem).checkPrivateKey(createPrivateKey(keyPem))) {
    throw new InsituError("internal", "the certificate and its key do not belong together");
  }
}

function refuseOddKey(publicKey: x509.PublicKey): void {
  const key = createPublicKey({ key: Buffer.from(publicKey.rawData), type: "spki", format: "der" });
  const curve = key.asymmetricKeyDetails?.namedCurve;
  const taken =
    key.asymmetricKeyType === "ed25519" ||
    (key.asymmetricKeyType === "ec" && (curve === "prime256v1" || curve === "secp384r1"));
  if (!taken) {
    throw new InsituError(
      "request.invalid",
      `keys of type ${key.asymmetricKeyType} ${curve ?? ""} are not taken; use ECDSA P-256, P-384 or Ed25519`,
    );
  }
}

/** 128 random bits; the 01 before them keeps the number positive and its length fixed. */
function serial(): string {
  return `01${randomBytes(16).toString("hex")}`;
}

function sha256(bytes: ArrayBuffer): string {
  return createHash("sha256").update(Buffer.from(bytes)).digest("hex");
}

function pem(label: string, der: ArrayBuffer): string {
  const lines =
    Buffer.from(der)
      .toString("base64")
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join("\n")}\n-----END ${label}-----\n`;
}
