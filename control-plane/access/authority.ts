/**
 * The authority as this replica has it: several issuers at a time, of which the record says what each is for.
 *
 * Until the record is known, and while there is none, it is the one issuer that lies in the directory of secrets.
 */
import { createPrivateKey, sign, type X509Certificate } from "node:crypto";
import { InsituError } from "../../shared/errors.ts";
import { rootsBytes } from "../../shared/wire/roots.ts";
import { type AuthorityRecord, firstRecord, serving, trusted } from "./authority-book.ts";
import { AuthorityFiles, type IssuerFiles, pinOf } from "./authority-files.ts";
import {
  type AgentCertificate,
  type AgentKey,
  type CertificatePair,
  loadOrCreatePki,
  openIssuer,
  type Pki,
  type PkiOptions,
} from "./pki.ts";
import type { AgentName } from "./spiffe.ts";

/** What agents are told, signed by every issuer, so that whoever trusts any of their roots believes it. */
export interface SignedRoots {
  revision: number;
  issuerPin: string;
  pem: string;
  /** `signerPem`: the issuer's certificate, then what leads to its root. */
  signatures: { signerPem: string; signature: Uint8Array }[];
}

/** An authority whose roots may change under it. */
export interface ChangingPki extends Pki {
  /** Undefined while nothing was ever changed: an agent's roots of its enrolment hold. */
  readonly roots: SignedRoots | undefined;
  /** Id of the issuer of server certificates. */
  readonly servingId: string;
  /** Id of the issuer of the certificate; undefined: of none that is trusted. */
  issuerOf(certificate: X509Certificate): string | undefined;
  /** Called after each change. Gives the way to stop. */
  onChange(listener: () => void): () => void;
}

/** The authority in the directory; the first of a new installation is made on the way. @throws InsituError `internal` */
export async function openAuthority(options: PkiOptions): Promise<Authority> {
  const files = new AuthorityFiles(options.directory);
  if ((await files.issuers()).length === 0) await loadOrCreatePki(options);
  return await Authority.open(options, files);
}

interface Issuer {
  files: IssuerFiles;
  pki: Pki;
}

export class Authority implements ChangingPki {
  readonly trustDomain: string;
  readonly options: PkiOptions;
  readonly #files: AuthorityFiles;
  readonly #listeners = new Set<() => void>();
  /** That are trusted and whose files are here, the oldest first. */
  #issuers: readonly Issuer[];
  #record: AuthorityRecord;
  #roots: SignedRoots | undefined;

  private constructor(options: PkiOptions, files: AuthorityFiles, first: Issuer) {
    this.trustDomain = options.trustDomain;
    this.options = options;
    this.#files = files;
    this.#issuers = [first];
    this.#record = firstRecord(first.files);
  }

  /** @throws InsituError `internal` when there are no keys and certificates that belong together */
  static async open(options: PkiOptions, files: AuthorityFiles): Promise<Authority> {
    const [first] = await files.issuers();
    if (first === undefined)
      throw new InsituError("internal", `${options.directory} holds no authority: restore it from a backup`);
    const pki = await openIssuer(first.pair, first.keyPath, options);
    return new Authority(options, files, { files: first, pki });
  }

  get record(): AuthorityRecord {
    return this.#record;
  }

  /** Ids of the issuers that this replica has the keys of. */
  get held(): string[] {
    return this.#issuers.map(({ files }) => files.id);
  }

  /** The issuers that are trusted, as they lie here. */
  get issuers(): readonly IssuerFiles[] {
    return this.#issuers.map(({ files }) => files);
  }

  /**
   * Does what the record says from now on. Gives the ids of trusted issuers whose files are not here.
   * @throws InsituError `internal` when files are damaged: nothing has changed then
   */
  async apply(record: AuthorityRecord): Promise<string[]> {
    const files = await this.#files.issuers();
    const issuers: Issuer[] = [];
    const missing: string[] = [];
    for (const { id, rootPin } of trusted(record)) {
      const its = files.find((found) => found.id === id && found.rootPin === rootPin);
      if (its === undefined) missing.push(id);
      else issuers.push({ files: its, pki: await openIssuer(its.pair, its.keyPath, this.options) });
    }
    if (issuers.length === 0) return missing;
    this.#record = record;
    this.#issuers = issuers;
    this.#roots = missing.length === 0 ? this.#signed() : undefined;
    const retired = record.issuers.filter(({ retired: deed }) => deed !== null);
    for (const gone of files.filter(({ id }) => retired.some((entry) => entry.id === id)))
      await this.#files.retire(gone);
    for (const listener of this.#listeners) listener();
    return missing;
  }

  get caPem(): string {
    const roots = new Map(this.#issuers.map(({ files, pki }) => [files.rootPin, pki.caPem]));
    return [...roots.values()].join("");
  }

  caPin(): string {
    return this.#serving().caPin();
  }

  get servingId(): string {
    return serving(this.#record).id;
  }

  get roots(): SignedRoots | undefined {
    return this.#roots;
  }

  #signed(): SignedRoots {
    const { revision, active } = this.#record;
    const issuer = this.#issuers.find(({ files }) => files.id === active)!;
    const told = { revision, issuerPin: pinOf(issuer.files.chain[0]!), pem: this.caPem };
    const bytes = rootsBytes({ ...told, trustDomain: this.trustDomain });
    const signatures = this.#issuers.map(({ files: { pair } }) => ({
      signerPem: pair.chainPem,
      signature: sign("sha256", bytes, createPrivateKey(pair.keyPem)),
    }));
    return { ...told, signatures };
  }

  issuerOf(certificate: X509Certificate): string | undefined {
    return this.#issuers.find(({ files }) => certificate.verify(files.chain[0]!.publicKey))?.files.id;
  }

  issueServerCertificate(names: Parameters<Pki["issueServerCertificate"]>[0]): Promise<CertificatePair> {
    return this.#serving().issueServerCertificate(names);
  }

  issuePeerCertificate(names: Parameters<Pki["issuePeerCertificate"]>[0]): Promise<CertificatePair> {
    return this.#serving().issuePeerCertificate(names);
  }

  readRequest(csrDer: Uint8Array): Promise<AgentKey> {
    return this.#issuers[0]!.pki.readRequest(csrDer);
  }

  async issueAgentCertificate(
    agent: AgentName,
    key: AgentKey,
    validForMs?: number,
  ): Promise<AgentCertificate> {
    return await this.#holder(this.#record.active).issueAgentCertificate(agent, key, validForMs);
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #serving(): Pki {
    return this.#holder(serving(this.#record).id);
  }

  #holder(id: string): Pki {
    const issuer = this.#issuers.find(({ files }) => files.id === id);
    if (issuer) return issuer.pki;
    throw new InsituError(
      "unavailable",
      `this replica has no key of the issuer ${id}: give it the files ca-${id}.key.pem and ca-${id}.crt.pem of the other replicas' secrets, and start it again`,
      { retryable: true },
    );
  }
}
