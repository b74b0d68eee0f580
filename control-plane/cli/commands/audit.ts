/** `insitu audit prove|checkpoint|reconcile`: what the ledger holds, verified here. */
import { readFile } from "node:fs/promises";
import { InsituError } from "../../../shared/errors.ts";
import { openCheckpoint } from "../../../shared/provenance/checkpoint.ts";
import { toBase64 } from "../../../shared/provenance/encoding.ts";
import { parseVerifierKey } from "../../../shared/provenance/signed-note.ts";
import { type CheckedLeaf, checkStepProof } from "../../../shared/provenance/step-proof.ts";
import type { LedgerKeyView, ReconcileFinding } from "../../api/ledger-schemas.ts";
import { certificatesIn } from "../audit/bundle-file.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { fieldLines } from "../output.ts";
import { instant, oneLine, plural } from "../text.ts";

interface TrustOptions {
  /** Verifier key of the ledger, from elsewhere. */
  key?: string;
  /** File with the certificate authority of the installation, from elsewhere. */
  root?: string;
}

const UNTRUSTED =
  "The key and the authority are those that the server gave just now. Give --key and --root what you wrote down earlier, to find out a server that lies.";

/** What is to be believed: as given, else as the server says. */
async function trustOf({ key, root }: TrustOptions, given: Omit<LedgerKeyView, "trouble">) {
  const rootsPem = root === undefined ? given.rootsPem : certificatesIn(await readFile(root, "utf8"), root);
  return { trustDomain: given.trustDomain, rootsPem, verifierKey: key ?? given.verifierKey };
}

export async function prove(
  invocation: Invocation,
  [target = ""]: string[],
  options: TrustOptions,
): Promise<number> {
  const { output, signal } = invocation;
  const [run, step, ...more] = target.split("/");
  if (!run || !step || more.length > 0)
    throw new InsituError(
      "request.invalid",
      `a step is named RUN/STEP, like last/summarise; not "${target}"`,
    );
  const client = await invocation.client();
  const proof = await client.ledgerProof(await client.resolveRunId(run, signal), step, signal);
  const checked = checkStepProof(proof, await trustOf(options, proof.key));
  if (checked.kind === "refused")
    throw new InsituError(
      "evidence.refused",
      `the proof does not verify: ${checked.reason}. Keep it (-o json): it is evidence`,
    );
  if (!output.people) {
    await output.data(proof);
    return EXIT.ok;
  }
  await output.line(
    `Step ${step} of run ${proof.run}: ${checked.leaves.length} leaves of ${checked.origin}, each`,
  );
  await output.line(`proved to be in its checkpoint of ${checked.size} leaves.`);
  for (const leaf of checked.leaves) {
    await output.line();
    for (const line of fieldLines(fieldsOf(leaf), output.paint)) await output.line(line);
  }
  if (!checked.leaves.some(({ receipt }) => receipt))
    await output.note("No receipt of it is in the ledger yet.");
  if (options.key === undefined || options.root === undefined) await output.note(UNTRUSTED);
  return EXIT.ok;
}

function fieldsOf({ index, entry, receipt }: CheckedLeaf): (readonly [string, string])[] {
  if (receipt) {
    const { agent, attempt, reads, writes, egress, time, result } = receipt.receipt;
    const sent = egress.reduce((sum, { sentBytes }) => sum + sentBytes, 0);
    const kept = egress.reduce((sum, { keptBytes }) => sum + keptBytes, 0);
    const names = (datasets: { dataset: string }[]): string =>
      datasets.map(({ dataset }) => dataset).join(", ") || "-";
    return [
      [`leaf ${index}`, "receipt, signed by its agent"],
      ["agent", `${agent.environment}/${agent.name}, key ${receipt.keyId.slice(0, 16)}`],
      ["attempt", `${attempt.attempt}, epoch ${attempt.epoch}`],
      ["reads", names(reads)],
      ["writes", names(writes)],
      ["left the site", `${sent} bytes; ${kept} were kept`],
      ["ended", `${result.status}, ${instant(time.finishedAtMs)} by the agent's clock`],
      ["certificate", receipt.validThen ? "valid at that time" : "NOT valid at that time"],
    ];
  }
  if (entry?.kind !== "decision")
    return [[`leaf ${index}`, entry?.kind ?? "of a kind that this release does not know"]];
  const { kind, ...about } = entry.decision;
  const words = Object.entries(about).filter(
    ([key]) => !["attempt", "runId", "pipeline", "version"].includes(key),
  );
  return [
    [`leaf ${index}`, kind],
    ["at", instant(entry.atMs)],
    ...words.map(
      ([key, value]) => [key, oneLine(Array.isArray(value) ? value.join(", ") : String(value))] as const,
    ),
  ];
}

export async function checkpoint(
  invocation: Invocation,
  _args: string[],
  options: Pick<TrustOptions, "key">,
): Promise<number> {
  const { output, signal } = invocation;
  const client = await invocation.client();
  const given = await client.ledgerKey(signal);
  const note = await client.ledgerCheckpoint(signal);
  const key = parseVerifierKey(options.key ?? given.verifierKey);
  if (!key) throw new InsituError("request.invalid", "--key takes a verifier key: name+id+key");
  const opened = openCheckpoint(note, key);
  if (opened.kind === "refused")
    throw new InsituError(
      "evidence.refused",
      `the checkpoint does not verify: ${opened.reason}. Keep it: it is evidence`,
    );
  const { origin, size, root } = opened.checkpoint;
  if (!output.people) {
    await output.data({
      origin,
      size,
      root: toBase64(root),
      note,
      key: given.verifierKey,
      trouble: given.trouble,
    });
    return EXIT.ok;
  }
  // The note itself, as others' tools read it.
  await output.line(note.trimEnd());
  await output.note(`Key: ${given.verifierKey}`);
  if (given.trouble !== "") await output.note(`The server says of its ledger: ${given.trouble}`);
  return given.trouble === "" ? EXIT.ok : EXIT.failed;
}

export async function reconcile(invocation: Invocation): Promise<number> {
  const { output, signal } = invocation;
  const client = await invocation.client();
  const { trouble } = await client.ledgerKey(signal);
  const findings: ReconcileFinding[] = [];
  const found = client.reconcileLedger(signal);
  let next = await found.next();
  for (; next.done !== true; next = await found.next()) {
    const { kind, where, detail } = next.value;
    if (output.people) await output.line(`${kind}  ${oneLine(where)}: ${oneLine(detail)}`);
    else findings.push(next.value);
  }
  const summary = next.value;
  const inOrder = summary.findings === 0 && trouble === "";
  if (!output.people) await output.data({ ...summary, findings, trouble });
  else {
    if (trouble !== "") await output.line(`trouble  ${oneLine(trouble)}`);
    const { messages, leaves, receipts, ended } = summary;
    const without = ended === 0 ? "" : `; ${receipts} receipts for ${ended} attempts that have ended`;
    await output.line(
      `${plural(leaves, "leaf", "leaves")} of ${plural(messages, "message")} compared${without}`,
    );
    await output.line(
      inOrder ? "Nothing is missing, double or changed." : `${plural(summary.findings, "finding")}.`,
    );
  }
  return inOrder ? EXIT.ok : EXIT.failed;
}
