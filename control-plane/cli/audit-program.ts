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
  examples(audit, ["insitu audit prove last/summarise", "insitu audit checkpoint", "insitu audit reconcile"]);
}
