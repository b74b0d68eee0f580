/** The options and the help of `insitu agents cordon`, `uncordon` and `drain`. */
import type { Command } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

interface Parts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
}

export function cordonCommands(agents: Command, { act, examples }: Parts): void {
  const commands = () => import("./commands/cordon.ts");
  const cordon = agents
    .command("cordon <agent>")
    .description("let an agent take no new work, also over restarts; what it runs goes on")
    .option("--reason <text>", "why; shown with the agent, and with steps that wait for it")
    .action(act(async () => (await commands()).cordon));
  examples(cordon, ['insitu agents cordon biscoe/agent-1 --reason "disk change"']);
  const uncordon = agents
    .command("uncordon <agent>")
    .description("let an agent take work again; calls a drain off, too")
    .action(act(async () => (await commands()).uncordon));
  examples(uncordon, ["insitu agents uncordon biscoe/agent-1"]);
  const drain = agents
    .command("drain <agent>")
    .description("cordon an agent, and let what it holds come to its end, or end it at a deadline")
    .option("--reason <text>", "why; shown with the agent, and with steps that wait for it")
    .option("--deadline <duration>", "after so long, what still runs is interrupted and offered to others")
    .option("--force", "at the deadline, end also steps that are started once; they fail")
    .option("--wait", "until nothing is held any more; exit 1 when somebody calls it off meanwhile")
    .option("--timeout <duration>", "give up waiting after this (exit 124); the drain goes on")
    .action(act(async () => (await commands()).drain));
  examples(drain, [
    "insitu agents drain biscoe/agent-1 --wait",
    'insitu agents drain biscoe/agent-1 --reason "kernel upgrade" --deadline 30m --wait',
  ]);
}
