/** Makes and seals receipts, with the key that signs this agent's reports and the certificate that vouches for it. */
import { X509Certificate } from "node:crypto";
import { IN_TOTO_PAYLOAD, seal } from "../../shared/provenance/dsse.ts";
import { toBase64 } from "../../shared/provenance/encoding.ts";
import { statementBytes } from "../../shared/provenance/receipt.ts";
import type { SignedReceipt } from "../../shared/provenance/signed-receipt.ts";
import type { Offer, Outcome } from "../../shared/wire/attempt.ts";
import type { Identity } from "../enrolment/identity.ts";
import type { ReportSigner } from "../enrolment/report-key.ts";
import { type AgentFacts, type MomentFacts, receiptOf } from "./receipt-of.ts";

/** What attempts need of it. */
export interface Receipts {
  /** Undefined for a step that has nothing to do with data. `offerDigest`: null, when an older release took the offer. */
  receiptFor(offer: Offer, outcome: Outcome, offerDigest: string | null): SignedReceipt | undefined;
}

type Vouching = Pick<Identity, "keyPem" | "certificatePem">;

export class ReceiptSigner implements Receipts {
  readonly #signer: ReportSigner;
  readonly #facts: AgentFacts;
  readonly #moment: () => Omit<MomentFacts, "offerDigest">;
  #vouched: Omit<SignedReceipt, "envelope">;

  constructor(options: {
    signer: ReportSigner;
    identity: Vouching;
    facts: AgentFacts;
    moment(): Omit<MomentFacts, "offerDigest">;
  }) {
    this.#signer = options.signer;
    this.#facts = options.facts;
    this.#moment = options.moment;
    this.#vouched = vouchedBy(options.signer, options.identity);
  }

  /** The certificate was replaced: what is signed from now on rests on the new one. */
  useIdentity(identity: Vouching): void {
    this.#vouched = vouchedBy(this.#signer, identity);
  }

  receiptFor(offer: Offer, outcome: Outcome, offerDigest: string | null): SignedReceipt | undefined {
    const receipt = receiptOf(offer, outcome, this.#facts, { ...this.#moment(), offerDigest });
    if (!receipt) return undefined;
    const { keyId: keyid, signEnvelope: sign } = this.#signer;
    return { envelope: seal(IN_TOTO_PAYLOAD, statementBytes(receipt), { keyid, sign }), ...this.#vouched };
  }
}

function vouchedBy(signer: ReportSigner, identity: Vouching): Omit<SignedReceipt, "envelope"> {
  const { reportPublicKey, reportKeyProof } = signer.announcement(identity.keyPem);
  return {
    publicKey: toBase64(reportPublicKey),
    keyProof: toBase64(reportKeyProof),
    certificates: certificatesIn(identity.certificatePem).map((der) => toBase64(der)),
  };
}

/** Those of the PEM text in their order; a root is left out, as it proves nothing to whoever does not have it. */
function certificatesIn(pem: Buffer): Uint8Array[] {
  const texts =
    pem.toString("utf8").match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  const certificates = texts.map((text) => new X509Certificate(text));
  return certificates.filter((one) => !one.checkIssued(one)).map(({ raw }) => raw);
}
