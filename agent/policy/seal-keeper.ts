/**
 * Holds a site's policy to its signature, and to the numbers that were in force before: an older version that was signed
 * properly is refused, also after a restart.
 */
import type { KeyObject } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Digest } from "../../shared/model/names.ts";
import { readOwnedFile } from "./owned-file.ts";
import { openSeal, sealPath } from "./policy-seal.ts";

const Kept = z.strictObject({ serial: z.int().min(1), digest: Digest });
type Kept = z.infer<typeof Kept>;

export interface SealKeeperOptions {
  keys: readonly KeyObject[];
  environment: string;
  /** Of the agent's user. */
  uid: number;
  /** Where the number in force is kept. */
  statePath: string;
}

export class SealKeeper {
  readonly #options: SealKeeperOptions;

  constructor(options: SealKeeperOptions) {
    this.#options = options;
  }

  /** @throws request.invalid unless the policy is signed, for this environment, and not older than what was in force */
  check(policyPath: string, digest: string): Kept {
    const { keys, environment, uid } = this.#options;
    const path = sealPath(policyPath);
    const { serial } = openSeal(path, readOwnedFile(path, uid).text, { keys, environment, digest });
    const kept = this.#kept();
    if (kept !== undefined && serial < kept.serial)
      throw new InsituError(
        "request.invalid",
        `${path}: it is older than what was in force: serial ${serial}, after ${kept.serial}; sign it with a larger one`,
      );
    if (kept !== undefined && serial === kept.serial && digest !== kept.digest)
      throw new InsituError(
        "request.invalid",
        `${path}: serial ${serial} was another policy before; sign it with a larger one`,
      );
    return { serial, digest };
  }

  /** Durable when it returns. @throws request.invalid: then the policy must not be in force */
  keep(next: Kept): void {
    const { statePath } = this.#options;
    if (this.#kept()?.serial === next.serial) return;
    try {
      mkdirSync(dirname(statePath), { recursive: true, mode: 0o700 });
      writeFileSync(`${statePath}.new`, JSON.stringify(next), { mode: 0o600, flush: true } as Parameters<
        typeof writeFileSync
      >[2]);
      renameSync(`${statePath}.new`, statePath);
    } catch (err) {
      const { message } = InsituError.from(err);
      throw new InsituError("request.invalid", `${statePath} cannot be written: ${message}`, { cause: err });
    }
  }

  #kept(): Kept | undefined {
    const { statePath } = this.#options;
    let text: string;
    try {
      text = readFileSync(statePath, "utf8");
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw new InsituError(
        "request.invalid",
        `${statePath} cannot be read: ${InsituError.from(err).message}`,
      );
    }
    try {
      return Kept.parse(JSON.parse(text));
    } catch {
      throw new InsituError(
        "request.invalid",
        `${statePath} is damaged: which policies are old is not known; look at the policy, then remove that file`,
      );
    }
  }
}
