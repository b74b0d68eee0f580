/** An agent with a certificate of a real authority, which seals receipts as the shipped one does. */
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { certificateRequest } from "../../agent/enrolment/certificate-request.ts";
import { newKey } from "../../agent/enrolment/identity.ts";
import { loadOrMakeReportSigner } from "../../agent/enrolment/report-key.ts";
import { ReceiptSigner } from "../../agent/receipts/receipt-signer.ts";
import { loadOrCreatePki, type Pki } from "../../control-plane/access/pki.ts";
import type { SignedReceipt } from "../../shared/provenance/signed-receipt.ts";
import { systemClock } from "../../shared/system.ts";
import type { Offer, Outcome } from "../../shared/wire/attempt.ts";

export { offerOf } from "../../agent/agent.fixture.ts";

const TRUST_DOMAIN = "insitu.test";
const SOFTWARE = "insitu-agent 0.1.0";

export interface Sealer {
  signer: ReceiptSigner;
  identity: { keyPem: Buffer; certificatePem: Buffer };
  seal(offer: Offer, outcome: Outcome): SignedReceipt;
  /** With its own key and certificate, in another name. */
  lie(offer: Offer, outcome: Outcome, as: { environment?: string; name?: string }): SignedReceipt;
}

export class Authority {
  readonly directory = mkdtempSync(join(tmpdir(), "insitu-receipts-"));
  readonly pki: Pki;

  private constructor(pki: Pki) {
    this.pki = pki;
  }

  static async open(): Promise<Authority> {
    const directory = mkdtempSync(join(tmpdir(), "insitu-authority-"));
    return new Authority(await loadOrCreatePki({ directory, trustDomain: TRUST_DOMAIN, clock: systemClock }));
  }

  get trust() {
    return { trustDomain: TRUST_DOMAIN, rootsPem: [this.pki.caPem] };
  }

  async agent(environment: string, name: string): Promise<Sealer> {
    const keyPem = newKey();
    const key = await this.pki.readRequest(certificateRequest(name, keyPem));
    const { certificatePem } = await this.pki.issueAgentCertificate({ environment, name }, key);
    const identity = { keyPem, certificatePem: Buffer.from(certificatePem) };
    const who = { trustDomain: TRUST_DOMAIN, environment, name };
    const reports = loadOrMakeReportSigner(join(this.directory, environment, name), who);
    const signerAs = (as: { environment: string; name: string }) =>
      new ReceiptSigner({
        signer: reports,
        identity,
        facts: { ...as, software: SOFTWARE, sandbox: { summary: "none: a test", boxes: false } },
        moment: () => ({ aheadOfCentreMs: 0, connected: true }),
      });
    const signer = signerAs({ environment, name });
    const sealed = (by: ReceiptSigner, offer: Offer, outcome: Outcome): SignedReceipt => {
      const receipt = by.receiptFor(offer, outcome, null);
      if (!receipt) throw new Error("the step has nothing to do with data");
      return receipt;
    };
    return {
      signer,
      identity,
      seal: (offer, outcome) => sealed(signer, offer, outcome),
      lie: (offer, outcome, as) => sealed(signerAs({ environment, name, ...as }), offer, outcome),
    };
  }
}
