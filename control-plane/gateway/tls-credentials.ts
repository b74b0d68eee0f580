/** TLS of the gateway: asks every client for a certificate, and refuses none without: Enrol comes without one. */
import { experimental, type ServerCredentials } from "@grpc/grpc-js";
import { InsituError } from "../../shared/errors.ts";
import type { CertificatePair } from "../access/pki.ts";

type Provider = experimental.CertificateProvider;
type CaListener = Parameters<Provider["addCaCertificateListener"]>[0];
type IdentityListener = Parameters<Provider["addIdentityCertificateListener"]>[0];

const HANDSHAKE_WITHIN_MS = 10_000;

interface TlsOptions {
  requestCert?: boolean;
  rejectUnauthorized?: boolean;
  handshakeTimeout?: number;
}

export interface GatewayCredentials {
  readonly credentials: ServerCredentials;
  /** New connections get this certificate; open ones stay as they are. The pair must have been checked. */
  replace(pair: CertificatePair): void;
  /** Of agents that connect from now on, certificates of these roots are accepted. */
  trust(caPem: string): void;
}

/**
 * @throws InsituError `internal` when the library does not do what we rest on. (The interceptor denies whoever
 *   has no verified certificate, so a change in the library closes doors and opens none.)
 */
export function gatewayCredentials(
  caPem: string,
  pair: CertificatePair,
  handshakeWithinMs = HANDSHAKE_WITHIN_MS,
): GatewayCredentials {
  const provider = new MemoryProvider(Buffer.from(caPem), pair);
  // The declared order of the first two arguments is not the real one; one object for both makes it no matter.
  const credentials = experimental.createCertificateProviderServerCredentials(provider, provider, false);
  const inner = credentials as unknown as { _getConstructorOptions?(): TlsOptions };
  const options = inner._getConstructorOptions?.();
  if (options?.requestCert !== true || options.rejectUnauthorized !== false) {
    throw new InsituError(
      "internal",
      "this version of @grpc/grpc-js cannot ask for client certificates without requiring them: install the version in package-lock.json",
    );
  }
  // Node gives a handshake two minutes, and the library has no option for it: connections that stall are many by then.
  inner._getConstructorOptions = () => ({ ...options, handshakeTimeout: handshakeWithinMs });
  return { credentials, replace: (next) => provider.replace(next), trust: (next) => provider.trust(next) };
}

class MemoryProvider implements Provider {
  #ca: Buffer;
  #pair: CertificatePair;
  readonly #caListeners = new Set<CaListener>();
  readonly #identityListeners = new Set<IdentityListener>();

  constructor(ca: Buffer, pair: CertificatePair) {
    this.#ca = ca;
    this.#pair = pair;
  }

  replace(pair: CertificatePair): void {
    this.#pair = pair;
    for (const listener of this.#identityListeners) this.#tell(listener);
  }

  trust(caPem: string): void {
    this.#ca = Buffer.from(caPem);
    for (const listener of this.#caListeners) listener({ caCertificate: this.#ca });
  }

  // The library registers its listeners before it can hear them, so the first call comes a tick later.
  addCaCertificateListener(listener: CaListener): void {
    this.#caListeners.add(listener);
    process.nextTick(() => {
      if (this.#caListeners.has(listener)) listener({ caCertificate: this.#ca });
    });
  }
  removeCaCertificateListener(listener: CaListener): void {
    this.#caListeners.delete(listener);
  }
  addIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.add(listener);
    process.nextTick(() => {
      if (this.#identityListeners.has(listener)) this.#tell(listener);
    });
  }
  removeIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.delete(listener);
  }

  #tell(listener: IdentityListener): void {
    listener({ certificate: Buffer.from(this.#pair.chainPem), privateKey: Buffer.from(this.#pair.keyPem) });
  }
}
