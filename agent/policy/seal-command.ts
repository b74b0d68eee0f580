/** `insitu-agent policy sign` and `verify`: for the team of a site, away from the agent's host and on it. */
import { renameSync, writeFileSync } from "node:fs";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import type { OpenCedar } from "./cedar-question.ts";
import { readOwnedFile } from "./owned-file.ts";
import { openSeal, readPrivateKey, readPublicKeys, readSeal, sealPath, sealText } from "./policy-seal.ts";
import { loadPolicy } from "./site-policy.ts";

export interface SealCommandOptions {
  path: string;
  environment: string;
  uid: number;
  openCedar: OpenCedar;
  readText(file: string): string;
}

/** Signs what the agent would take: a policy with a fault is not signed. Returns lines for people. */
export async function signPolicy(
  { path, environment, uid, openCedar, readText }: SealCommandOptions,
  { keyFile, serial: given }: { keyFile: string; serial: string | undefined },
): Promise<string[]> {
  if (!Name.safeParse(environment).success) throw invalid(`"${environment}" is no name of an environment`);
  const key = readPrivateKey(readText(keyFile));
  const { digest } = await loadPolicy(path, { uid, openCedar });
  const file = sealPath(path);
  const former = formerSerial(file, uid);
  const serial = given === undefined ? former + 1 : Number(given);
  if (!Number.isSafeInteger(serial) || serial < 1)
    throw invalid(`--serial is a whole number from 1, not "${given}"`);
  if (serial < former) throw invalid(`--serial ${serial} is less than that of ${file}, which is ${former}`);
  const text = sealText({ v: 1, environment, serial, digest }, key);
  try {
    writeFileSync(`${file}.new`, text, { mode: 0o644 });
    renameSync(`${file}.new`, file);
  } catch (err) {
    throw invalid(`${file} cannot be written: ${InsituError.from(err).message}`);
  }
  return [`signed      ${file}`, `            ${digest}`, `            serial ${serial}, for ${environment}`];
}

/** @throws request.invalid unless an agent of the environment with these keys would take it */
export async function verifyPolicy(
  { path, environment, uid, openCedar }: SealCommandOptions,
  keyFile: string,
): Promise<string[]> {
  const keys = readPublicKeys(keyFile, readOwnedFile(keyFile, uid).text);
  const { digest, serial } = await loadPolicy(path, {
    uid,
    openCedar,
    seals: {
      check: (policyPath, found) => {
        const file = sealPath(policyPath);
        return openSeal(file, readOwnedFile(file, uid).text, { keys, environment, digest: found });
      },
    },
  });
  return [
    `policy      ${path}`,
    `            ${digest}`,
    `            serial ${serial}, signed for ${environment}`,
    "An agent takes it, unless one with a larger serial was in force there.",
  ];
}

/** Zero when nothing was signed yet. */
function formerSerial(file: string, uid: number): number {
  try {
    return readSeal(readOwnedFile(file, uid).text)?.serial ?? 0;
  } catch {
    return 0; // there is none; one that cannot be read is written anew, or writing it says why not
  }
}

function invalid(message: string): InsituError {
  return new InsituError("request.invalid", `${message} (see insitu-agent policy --help)`);
}
