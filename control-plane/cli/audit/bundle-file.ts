/** A bundle as a file: read line by line, so that one of any size takes little memory. */
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { InsituError } from "../../../shared/errors.ts";
import { LINE_MAX_CHARS } from "../../evidence/bundle/records.ts";
import type { BundleTrust } from "../../evidence/bundle/verify-bundle.ts";

/** Lines without their ends. @throws request.invalid when it cannot be read, or has a line that is too long */
export async function* linesOf(path: string): AsyncGenerator<string> {
  let rest = "";
  try {
    for await (const chunk of createReadStream(path, { encoding: "utf8", highWaterMark: 1024 * 1024 })) {
      const lines = (rest + (chunk as string)).split("\n");
      rest = lines.pop() ?? "";
      if (rest.length > LINE_MAX_CHARS)
        throw new InsituError(
          "request.invalid",
          `${path} has a line of more than ${LINE_MAX_CHARS} characters`,
        );
      yield* lines;
    }
  } catch (thrown) {
    throw unreadable(path, thrown);
  }
  if (rest !== "") yield rest;
}

export interface TrustFiles {
  /** File with certificates in PEM. */
  root?: string | undefined;
  /** The verifier key itself, or a file with it. */
  logKey?: string | undefined;
  /** Files, each with a checkpoint that was kept. */
  checkpoint?: string[] | undefined;
}

/** @throws request.invalid for a file that is not what it should be */
export async function readTrust({ root, logKey, checkpoint = [] }: TrustFiles): Promise<BundleTrust> {
  const kept = await Promise.all(checkpoint.map(textOf));
  const trust: BundleTrust = { kept };
  if (logKey !== undefined) trust.verifierKey = logKey.includes("+") ? logKey : (await textOf(logKey)).trim();
  if (root !== undefined) trust.rootsPem = certificatesIn(await textOf(root), root);
  return trust;
}

export function certificatesIn(text: string, file: string): string[] {
  const found = text.match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g);
  if (found) return found;
  throw new InsituError(
    "request.invalid",
    `--root takes a file with certificates in PEM, and ${file} has none`,
  );
}

async function textOf(path: string): Promise<string> {
  return await readFile(path, "utf8").catch((thrown: unknown) => {
    throw unreadable(path, thrown);
  });
}

function unreadable(path: string, thrown: unknown): InsituError {
  if (thrown instanceof InsituError) return thrown;
  const { message } = thrown as Error;
  return new InsituError("request.invalid", `${path} cannot be read: ${message}`, { cause: thrown });
}
