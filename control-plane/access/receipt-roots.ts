/** Which roots receipts lead to: also those of issuers that were retired, as what they vouched for then is read for years. */
import type { ReceiptTrust } from "../../shared/provenance/verify-receipt.ts";
import type { AuthorityFiles } from "./authority-files.ts";

export class ReceiptRoots {
  readonly #files: Pick<AuthorityFiles, "everyRoot">;
  #trust: ReceiptTrust;

  private constructor(files: Pick<AuthorityFiles, "everyRoot">, trust: ReceiptTrust) {
    this.#files = files;
    this.#trust = trust;
  }

  static async open(files: Pick<AuthorityFiles, "everyRoot">, trustDomain: string): Promise<ReceiptRoots> {
    return new ReceiptRoots(files, { trustDomain, rootsPem: await files.everyRoot() });
  }

  /** As it was when it was last read. */
  get trust(): ReceiptTrust {
    return this.#trust;
  }

  /** The same object as before when nothing has changed. */
  async reload(): Promise<ReceiptTrust> {
    const rootsPem = await this.#files.everyRoot();
    if (rootsPem.join("") !== this.#trust.rootsPem.join("")) this.#trust = { ...this.#trust, rootsPem };
    return this.#trust;
  }
}
