/**
 * Renews the agent's certificate, with a new key, when two thirds of its life are over. When it has expired, the agent
 * comes back with the key that it has, if a person approves.
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock, Timer } from "../../shared/system.ts";
import { certificateRequest } from "./certificate-request.ts";
import { type Identity, newKey, replacePair } from "./identity.ts";
import { type HeldRoots, isFromIssuer, isVouchedFor } from "./trusted-roots.ts";

/** The longest time between two looks: a clock that was set, or a host that slept, is noticed by then. */
const LOOK_MS = 60_000;
/** Of an agent whose certificate has expired, which may wait for a person. */
const EXPIRED_LOOK_MS = 10_000;
/** By then there is a connection, if there can be one. */
const FIRST_LOOK_MS = 5_000;
/** Of its life; the last third is for a site that is cut off. */
const RENEW_AT = 2 / 3;
/** After a renewal that gave no certificate of the issuer that was named: a control plane that was restored has another. */
const MOVE_AGAIN_MS = 3_600_000;

export interface RenewalOptions {
  clock: Clock;
  log: Logger;
  stateDir: string;
  identity: Identity;
  /** Wall time, the centre's where it is known. */
  nowMs(): number;
  /** Whether the control plane can be asked. */
  connected(): boolean;
  /** Asks it, with the identity that there is; resolves with the certificate in PEM. */
  request(csrDer: Buffer): Promise<Buffer>;
  /** A certificate for the key of the request, which is the present one; asked without a client certificate. */
  recover(csrDer: Buffer): Promise<Buffer>;
  /** What is on disk now. The older identity is good until this one is used. */
  renewed(identity: Identity): void;
}

export class Renewal {
  readonly #options: RenewalOptions;
  #identity: Identity;
  #timer: Timer | undefined;
  #renewing: Promise<void> | undefined;
  #closed = false;
  #trouble = "";
  /** When it renewed for the sake of another issuer. */
  #movedAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: RenewalOptions) {
    this.#options = options;
    this.#identity = options.identity;
  }

  /** The first look comes some time after the first attempt to connect: this host's clock alone may be wrong. */
  start(): void {
    this.#timer = this.#options.clock.after(FIRST_LOOK_MS, () => this.look());
  }

  /** Looks whether it is time. To be called when a connection is there; comes back by itself later. */
  look(): void {
    this.#timer?.cancel();
    if (this.#closed) return;
    const { clock, connected, nowMs } = this.#options;
    const waitMs = this.#dueAtMs() - nowMs();
    const isExpired = nowMs() >= this.#identity.notAfterMs;
    const againMs = isExpired ? EXPIRED_LOOK_MS : LOOK_MS;
    this.#timer = clock.after(waitMs > 0 ? Math.min(waitMs, againMs) : againMs, () => this.look());
    if (waitMs > 0 || this.#renewing || !(connected() || isExpired)) return;
    this.#renewing = this.#renew(isExpired).finally(() => {
      this.#renewing = undefined;
    });
  }

  /** At once when certificates come from another issuer by now. */
  #dueAtMs(): number {
    const { certificatePem, caPem, roots } = this.#identity;
    const atMs = renewAtMs(certificatePem);
    if (isFromIssuer(certificatePem, { ...roots, caPem })) return atMs;
    return Math.min(atMs, this.#movedAtMs + MOVE_AGAIN_MS);
  }

  /** On disk already. A certificate that the new roots do not vouch for is renewed at once. */
  useRoots({ caPem, ...roots }: HeldRoots): void {
    this.#identity = { ...this.#identity, caPem, roots };
    this.look();
  }

  /** Resolves when no request is on its way. */
  async settled(): Promise<void> {
    await this.#renewing;
  }

  /** Never waits for the control plane: an answer that comes later is not used. */
  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
  }

  /** Never rejects: the certificate is good for a while still, and the next look asks again. */
  async #renew(isExpired: boolean): Promise<void> {
    const { log, stateDir, request, recover, renewed } = this.#options;
    const former = this.#identity;
    try {
      const keyPem = isExpired ? former.keyPem : newKey();
      const ask = isExpired ? recover : request;
      const certificatePem = await ask(certificateRequest(former.name, keyPem));
      if (this.#closed) return;
      // The roots may have changed since it was asked.
      const present = this.#identity;
      const next = renewedIdentity(present, { keyPem, certificatePem }, this.#options.nowMs());
      if (!isFromIssuer(present.certificatePem, { ...present.roots, caPem: present.caPem }))
        this.#movedAtMs = this.#options.nowMs();
      replacePair(stateDir, next);
      this.#identity = next;
      this.#trouble = "";
      log.info({ notAfter: new Date(next.notAfterMs).toISOString() }, "certificate renewed");
      renewed(next);
      this.look();
    } catch (thrown) {
      const err = InsituError.from(thrown);
      if (err.message !== this.#trouble)
        log.warn({ err, notAfter: new Date(former.notAfterMs).toISOString() }, "certificate not renewed yet");
      this.#trouble = err.message;
    }
  }
}

/** Wall time in ms. */
export function renewAtMs(certificatePem: Buffer): number {
  const { validFrom, validTo } = new X509Certificate(certificatePem);
  const fromMs = Date.parse(validFrom);
  return fromMs + (Date.parse(validTo) - fromMs) * RENEW_AT;
}

/** @throws InsituError `auth.denied` when the answer is no certificate for this agent and this key, or is none that helps */
function renewedIdentity(
  former: Identity,
  pair: { keyPem: Buffer; certificatePem: Buffer },
  nowMs: number,
): Identity {
  const refuse = (why: string): never => {
    throw new InsituError("auth.denied", `the renewed certificate is not used: ${why}`);
  };
  const next = new X509Certificate(pair.certificatePem);
  if (!next.checkPrivateKey(createPrivateKey(pair.keyPem))) refuse("it is for another key");
  if (next.subjectAltName !== new X509Certificate(former.certificatePem).subjectAltName)
    refuse(`it is for ${next.subjectAltName}`);
  if (!isVouchedFor(pair.certificatePem, former.caPem, nowMs)) refuse("another authority has issued it");
  const notAfterMs = Date.parse(next.validTo);
  // One of another issuer helps also when it ends earlier: the former one is worth nothing soon.
  const isMove = !isFromIssuer(former.certificatePem, { ...former.roots, caPem: former.caPem });
  if (!(notAfterMs > (isMove ? nowMs : former.notAfterMs)))
    refuse(`it ends no later than the present one, at ${next.validTo}`);
  return { ...former, ...pair, notAfterMs };
}
