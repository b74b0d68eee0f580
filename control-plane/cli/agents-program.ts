/** The options and the help of `insitu agents`. */
import type { Command } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

interface Parts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
}

export function agentsCommand(program: Command, { act, examples }: Parts): void {
  const commands = () => import("./commands/agents.ts");
  const agents = program.command("agents").description("list, show, admit, drain and revoke agents");
  examples(agents, [
    "insitu agents list",
    "insitu agents show biscoe/agent-1",
    'insitu agents drain biscoe/agent-1 --reason "kernel upgrade" --wait',
    'insitu agents revoke biscoe/agent-1 --reason "host stolen"',
  ]);
  const list = agents
    .command("list")
    .description("agents, connected or not")
    .option("--environment <name>", "of this environment")
    .action(act(async () => (await commands()).list));
  examples(list, ["insitu agents list", "insitu agents list --environment hq -o json"]);
  const show = agents
    .command("show <agent>")
    .description("one agent in full; it is named environment/name")
    .action(act(async () => (await commands()).show));
  examples(show, ["insitu agents show biscoe/agent-1"]);
  const decide = (what: "approve" | "deny", description: string): void => {
    const command = agents
      .command(`${what} <agent>`)
      .description(description)
      .option(
        "--fingerprint <sha256>",
        "of the key that the agent's own log shows; refused when it is another",
      )
      .action(act(async () => (await commands())[what]));
    examples(command, [
      `insitu agents ${what} biscoe/agent-2`,
      `insitu agents ${what} biscoe/agent-2 --fingerprint sha256:5f2c…`,
    ]);
  };
  decide("approve", "let an agent join that waits for approval");
  decide("deny", "do not let it join; its name is free for another key");
  const revoke = agents
    .command("revoke <agent>")
    .description(
      "put an agent out for good: its connections are cut, its key and its join tokens open nothing",
    )
    .requiredOption("--reason <text>", "why; kept with the agent")
    .action(act(async () => (await commands()).revoke));
  examples(revoke, ['insitu agents revoke biscoe/agent-1 --reason "host stolen"']);
  cordonCommands(agents, { act, examples });
}

function cordonCommands(agents: Command, { act, examples }: Parts): void {
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
