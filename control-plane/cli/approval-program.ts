/** The commands of `insitu approvals`: their options and their help. What they do is loaded when they are called. */
import type { Command } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

export interface ApprovalParts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[]): void;
}

export function approvalCommands(program: Command, { act, examples }: ApprovalParts): void {
  const commands = () => import("./commands/approvals.ts");
  const approvals = program
    .command("approvals")
    .description("requests that an access policy lets through only when a second person approves them");
  examples(approvals, [
    "insitu approvals list",
    "insitu approvals show 01m89hkddb82ecx77dsztdytxm",
    "insitu approvals approve 01m89hkddb82ecx77dsztdytxm",
  ]);
  const list = approvals
    .command("list")
    .description("what you asked for, and what you could approve")
    .option("--all", "also what is denied, used or expired, for 30 days")
    .action(act(async () => (await commands()).list));
  examples(list, ["insitu approvals list", "insitu approvals list --all -o json"]);
  const show = approvals
    .command("show <id>")
    .description("one of them, with the whole request")
    .action(act(async () => (await commands()).show));
  examples(show, ["insitu approvals show 01m89hkddb82ecx77dsztdytxm"]);
  const approve = approvals
    .command("approve <id>")
    .description("let it through once; who asked sends the same request again, within a day")
    .option("--reason <text>", "kept with it")
    .action(act(async () => (await commands()).approve));
  examples(approve, ['insitu approvals approve 01m89hkddb82ecx77dsztdytxm --reason "agreed on the phone"']);
  const deny = approvals
    .command("deny <id>")
    .description("refuse it, or withdraw what you asked for yourself")
    .option("--reason <text>", "told to who asked")
    .action(act(async () => (await commands()).deny));
  examples(deny, ['insitu approvals deny 01m89hkddb82ecx77dsztdytxm --reason "not before the audit"']);
}
