/** `insitu audit export|verify|report`: what the ledger holds about a dataset, to take away and to verify without a server. */
import { createWriteStream } from "node:fs";
import { rename, rm, writeFile } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { InsituError } from "../../../shared/errors.ts";
import { newSecret } from "../../../shared/system.ts";
import { datasetReport } from "../../evidence/bundle/dataset-report.ts";
import { formatRecord } from "../../evidence/bundle/records.ts";
import { reportHtml } from "../../evidence/bundle/report-html.ts";
import { BundleVerifier } from "../../evidence/bundle/verify-bundle.ts";
import { bundleRecords } from "../audit/bundle-export.ts";
import { linesOf, readTrust, type TrustFiles } from "../audit/bundle-file.ts";
import { isVerified, verificationData, verificationLines } from "../audit/verification-text.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { plural } from "../text.ts";

interface ExportOptions {
  dataset: string;
  from?: string;
  to?: string;
  file?: string;
}

export async function exportBundle(
  invocation: Invocation,
  _args: string[],
  { dataset, from, to, file }: ExportOptions,
): Promise<number> {
  const { output, signal, clock } = invocation;
  const client = await invocation.client();
  // Without it every question about the dataset would be answered with nothing.
  await client.getResource("dataset", dataset, signal);
  const request = { dataset, fromMs: instantOf(from, "--from"), toMs: instantOf(to, "--to") };
  let records = 0;
  async function* lines(): AsyncGenerator<string> {
    for await (const record of bundleRecords(client, request, { clock, signal })) {
      records += 1;
      yield formatRecord(record);
    }
  }
  if (file === undefined) {
    for await (const line of lines()) await invocation.world.terminal.out.write(line);
    return EXIT.ok;
  }
  // Whole or not at all: what broke off would be found, but only by whoever verifies it.
  const staged = `${file}.${newSecret(6)}.part`;
  try {
    await pipeline(lines, createWriteStream(staged, { flags: "wx", mode: 0o600 }), { signal });
    await rename(staged, file);
  } catch (thrown) {
    await rm(staged, { force: true });
    throw thrown;
  }
  await output.note(
    `${plural(records, "record")} in ${file}. Verify it: insitu audit verify ${file} --root … --log-key …`,
  );
  return EXIT.ok;
}

export async function verifyBundle(
  invocation: Invocation,
  [file = ""]: string[],
  options: TrustFiles & { strict?: boolean },
): Promise<number> {
  const { output } = invocation;
  const verifier = new BundleVerifier(await readTrust(options));
  for await (const line of linesOf(file)) verifier.line(line);
  const found = verifier.finish();
  if (output.people) for (const line of verificationLines(found)) await output.line(line);
  else await output.data(verificationData(found));
  return isVerified(found, options.strict) ? EXIT.ok : EXIT.failed;
}

/** From a file, or straight from the server: verified here in either case. */
export async function report(
  invocation: Invocation,
  [file]: string[],
  options: TrustFiles & { dataset?: string; from?: string; to?: string; html?: string },
): Promise<number> {
  const { output, signal, clock } = invocation;
  const { dataset, from, to, html } = options;
  if ((file === undefined) === (dataset === undefined))
    throw new InsituError("request.invalid", "it takes a bundle, or --dataset to ask the server; not both");
  const verifier = new BundleVerifier(await readTrust(options));
  if (file !== undefined) for await (const line of linesOf(file)) verifier.line(line);
  else {
    const client = await invocation.client();
    const request = { dataset: dataset!, fromMs: instantOf(from, "--from"), toMs: instantOf(to, "--to") };
    for await (const record of bundleRecords(client, request, { clock, signal })) verifier.record(record);
  }
  const made = datasetReport(verifier.finish());
  if (html !== undefined) {
    await writeFile(html, reportHtml(made), { mode: 0o600 });
    await output.note(`The report is in ${html}.`);
  }
  if (!output.people) await output.data(made);
  else if (html === undefined) await output.line(reportHtml(made).trimEnd());
  return made.verified ? EXIT.ok : EXIT.failed;
}

function instantOf(text: string | undefined, flag: string): number | null {
  if (text === undefined) return null;
  const atMs = /^\d{4}-\d{2}-\d{2}/.test(text) ? Date.parse(text) : Number.NaN;
  if (Number.isFinite(atMs) && atMs >= 0) return atMs;
  throw new InsituError(
    "request.invalid",
    `${flag} takes a date or a time like 2026-11-25 or 2026-11-25T08:00:00Z, not "${text}"`,
  );
}
