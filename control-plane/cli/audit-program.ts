/** The options and the help of `insitu audit`. */
import type { Command } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

interface Parts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
}

const TRUST =
  "Without --key and --root the server is believed about them. `insitu audit checkpoint` shows the key: write it down once.";

export function auditCommands(program: Command, { act, examples }: Parts): void {
  const commands = () => import("./commands/audit.ts");
  const audit = program
    .command("audit")
    .description("the ledger: what agents have signed and what was decided about data, provably");

  const proving = audit
    .command("prove <run/step>")
    .description("receipts of a step, and the proof that they are in the ledger; verified here")
    .option("--key <key>", "the ledger's key as you know it: name+id+key")
    .option("--root <file>", "the certificate authority of the installation as you know it, PEM")
    .action(act(async () => (await commands()).prove));
  examples(
    proving,
    ["insitu audit prove last/summarise", "insitu audit prove 01jd4x/fit -o json > proof.json"],
    TRUST,
  );

  const checking = audit
    .command("checkpoint")
    .description(
      "the newest checkpoint of the ledger, a signed note: keep one, and nothing before it can be changed",
    )
    .option("--key <key>", "the ledger's key as you know it: name+id+key")
    .action(act(async () => (await commands()).checkpoint));
  examples(
    checking,
    ["insitu audit checkpoint > checkpoint-$(date +%F).txt", "insitu audit checkpoint -o json"],
    TRUST,
  );

  const reconciling = audit
    .command("reconcile")
    .description(
      "compare the ledger with what it is made of: gaps, doubles, changes, attempts without a receipt",
    )
    .action(act(async () => (await commands()).reconcile));
  examples(
    reconciling,
    ["insitu audit reconcile", "insitu audit reconcile -o json"],
    "Reads every message and every leaf. Exit 1 when anything is found.",
  );
  bundleCommands(audit, { act, examples });
  examples(audit, [
    "insitu audit prove last/summarise",
    "insitu audit checkpoint",
    "insitu audit reconcile",
    "insitu audit export --dataset patients --file patients.bundle",
    "insitu audit verify patients.bundle --root ca.crt.pem --log-key ledger.key",
  ]);
}

const BUNDLE_TRUST =
  "Without --root and --log-key the bundle is believed about them, and that is said. Works without a server, and so does dist/insitu-verify.js alone.";

function trusting(command: Command): Command {
  return command
    .option("--root <file>", "the certificate authority of the installation as you know it, PEM")
    .option("--log-key <key>", "the ledger's key as you know it: name+id+key, or a file with it")
    .option("--checkpoint <file>", "a checkpoint that you kept earlier; may be repeated", collect);
}

function bundleCommands(audit: Command, { act, examples }: Parts): void {
  const commands = () => import("./commands/audit-bundle.ts");
  const exporting = audit
    .command("export")
    .description("everything the ledger holds about a dataset, as a bundle that verifies without a server")
    .requiredOption("--dataset <name>", "whose steps are asked about")
    .option("--from <time>", "leave out what the ledger has from before, but for hashes")
    .option("--to <time>", "leave out what the ledger has from after, but for hashes")
    .option("--file <path>", "where to write it; without it, to standard output")
    .action(act(async () => (await commands()).exportBundle));
  examples(
    exporting,
    [
      "insitu audit export --dataset patients --file patients.bundle",
      "insitu audit export --dataset patients --from 2026-01-01 --to 2026-04-01 --file q1.bundle",
    ],
    "All leaves of that time are in it, also those about other datasets: that nothing is missing cannot be shown otherwise.",
  );

  const verifying = trusting(
    audit
      .command("verify <bundle>")
      .description("verify a bundle here, without a server; exit 1 when anything in it contradicts itself"),
  )
    .option("--strict", "exit 1 also when an item is open, like an attempt without a receipt")
    .action(act(async () => (await commands()).verifyBundle));
  examples(
    verifying,
    [
      'insitu audit verify patients.bundle --root ca.crt.pem --log-key "$(cat ledger.key)"',
      "insitu audit verify patients.bundle --checkpoint checkpoint-2026-10-01.txt -o json",
    ],
    BUNDLE_TRUST,
  );

  const reporting = trusting(
    audit
      .command("report [bundle]")
      .description(
        "where steps that read or wrote a dataset ran, who let them, what left; HTML to print, or JSON",
      )
      .option("--dataset <name>", "ask the server, instead of reading a bundle")
      .option("--from <time>", "with --dataset: as of export")
      .option("--to <time>", "with --dataset: as of export")
      .option("--html <file>", "write the page there"),
  ).action(act(async () => (await commands()).report));
  examples(
    reporting,
    [
      "insitu audit report patients.bundle --root ca.crt.pem --log-key ledger.key --html patients.html",
      "insitu audit report --dataset patients -o json",
    ],
    "It is verified first; exit 1 when that fails.",
  );
}

function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}
