/**
 * The issuers' keys and certificates in the directory of secrets, which all replicas are given.
 *
 * The first issuer's are `ca.key.pem` and `ca.crt.pem`, those of later ones carry the id. What the
 * store says of an issuer counts while both lie here; the key of one that was retired is gone, so nothing in the store brings it back.
 */
import { createHash, createPrivateKey, createPublicKey, X509Certificate } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import type { IssuerPair } from "./pki.ts";
import { loadOrCreateSecret, loadSecret } from "./secret-file.ts";

const KEY_FILE = /^ca(?:-[0-9a-f]{16})?\.key\.pem$/;
const CERTIFICATE_FILE = /^ca(?:-[0-9a-f]{16})?\.crt\.pem$/;
const CERTIFICATES = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g;

export interface IssuerFiles {
  id: string;
  /** `sha256:` and the SHA-256 of the root's SPKI, hexadecimal. */
  rootPin: string;
  chain: X509Certificate[];
  pair: IssuerPair;
  keyPath: string;
}

export class AuthorityFiles {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Those with a key and certificates, the first one first, then by age. @throws InsituError `internal` for damaged ones */
  async issuers(): Promise<IssuerFiles[]> {
    const found: IssuerFiles[] = [];
    for (const name of await this.#keyNames()) {
      const keyPath = join(this.#directory, name);
      const [keyPem, chainPem] = [await loadSecret(keyPath), await loadSecret(certificatePathOf(keyPath))];
      if (keyPem === undefined || chainPem === undefined) continue;
      try {
        const chain = certificatesOf(chainPem);
        const id = issuerId(chain[0]!);
        found.push({ id, rootPin: pinOf(chain.at(-1)!), chain, pair: { keyPem, chainPem }, keyPath });
      } catch (err) {
        const path = certificatePathOf(keyPath);
        throw new InsituError("internal", `${path} holds no certificates: restore it from a backup`, {
          cause: err,
        });
      }
    }
    const age = ({ chain, keyPath }: IssuerFiles) =>
      keyPath.endsWith("ca.key.pem") ? 0 : Date.parse(chain[0]!.validFrom);
    return found.sort((a, b) => age(a) - age(b) || (a.id < b.id ? -1 : 1));
  }

  /** Certificates come first: a key with none is taken for one that waits for them. */
  async add(pair: IssuerPair): Promise<IssuerFiles> {
    const chain = certificatesOf(pair.chainPem);
    const id = issuerId(chain[0]!);
    const keyPath = this.#keyPathOf(id);
    await loadOrCreateSecret(certificatePathOf(keyPath), () => pair.chainPem);
    await loadOrCreateSecret(keyPath, () => pair.keyPem);
    return { id, rootPin: pinOf(chain.at(-1)!), chain, pair, keyPath };
  }

  /** PEM of each root that any issuer here leads or has led to, retired ones too, the same one once. */
  async everyRoot(): Promise<string[]> {
    const roots = new Map<string, string>();
    for (const name of await this.#names(CERTIFICATE_FILE)) {
      const pem = await loadSecret(join(this.#directory, name));
      const root = pem === undefined ? undefined : certificatesOf(pem).at(-1)!;
      if (root) roots.set(root.fingerprint256, root.toString());
    }
    return [...roots.values()];
  }

  /** The key of an issuer, whether or not it has certificates yet. */
  async keyOf(id: string): Promise<string | undefined> {
    for (const name of await this.#keyNames()) {
      const keyPem = await loadSecret(join(this.#directory, name));
      if (keyPem !== undefined && idOfKey(keyPem) === id) return keyPem;
    }
    return undefined;
  }

  /** One that waits for its certificates. */
  async pendingKey(): Promise<string | undefined> {
    for (const name of await this.#keyNames()) {
      const path = join(this.#directory, name);
      if ((await loadSecret(certificatePathOf(path))) === undefined) return await loadSecret(path);
    }
    return undefined;
  }

  /** Without certificates. Gives its id. */
  async addKey(keyPem: string): Promise<string> {
    const id = idOfKey(keyPem);
    await loadOrCreateSecret(this.#keyPathOf(id), () => keyPem);
    return id;
  }

  /**
   * Destroys the key, and with it all trust here; the certificate stays, for those who still verify with it, like clients of a
   * NATS that shows certificates of this issuer. Safe twice, and at once from several replicas.
   */
  async retire(issuer: Pick<IssuerFiles, "keyPath">): Promise<void> {
    await rm(issuer.keyPath, { force: true });
  }

  /** One that nobody knows of. */
  async discard({ keyPath }: Pick<IssuerFiles, "keyPath">): Promise<void> {
    await rm(keyPath, { force: true });
    await rm(certificatePathOf(keyPath), { force: true });
  }

  #keyNames(): Promise<string[]> {
    return this.#names(KEY_FILE);
  }

  async #names(pattern: RegExp): Promise<string[]> {
    const names = await readdir(this.#directory).catch((err: NodeJS.ErrnoException) => {
      if (err.code === "ENOENT") return [];
      throw err;
    });
    return names.filter((name) => pattern.test(name)).sort();
  }

  #keyPathOf(id: string): string {
    return join(this.#directory, `ca-${id}.key.pem`);
  }
}

export function certificatePathOf(keyPath: string): string {
  return keyPath.replace(/\.key\.pem$/, ".crt.pem");
}

/** In order. @throws Error when there are none, or one cannot be read */
export function certificatesOf(pem: string): X509Certificate[] {
  const found = (pem.match(CERTIFICATES) ?? []).map((text) => new X509Certificate(text));
  if (found.length === 0) throw new Error("no certificate in PEM");
  return found;
}

/** `sha256:` and the SHA-256 of the SPKI, hexadecimal. */
export function pinOf(certificate: X509Certificate): string {
  return `sha256:${spkiHash(certificate.publicKey.export({ type: "spki", format: "der" }))}`;
}

export function issuerId(certificate: X509Certificate): string {
  return pinOf(certificate).slice("sha256:".length).slice(0, 16);
}

function idOfKey(keyPem: string): string {
  const spki = createPublicKey(createPrivateKey(keyPem)).export({ type: "spki", format: "der" });
  return spkiHash(spki).slice(0, 16);
}

function spkiHash(spki: Buffer): string {
  return createHash("sha256").update(spki).digest("hex");
}
