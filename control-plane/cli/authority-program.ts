/** The options and the help of `insitu ca`. */
import type { Command } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

interface Parts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
}

export function authorityCommands(program: Command, { act, examples }: Parts): void {
  const commands = () => import("./commands/ca.ts");
  const ca = program.command("ca").description("who issues the certificates of servers and agents");
  examples(
    ca,
    ["insitu ca show", "insitu ca rotate", "insitu ca activate", "insitu ca retire 0f3a9c27d1e4b586"],
    "Three steps, between which agents come along by themselves: docs/runbooks/ca-rotation.md.",
  );
  const show = ca
    .command("show")
    .description("the issuers, which agents have come along, and what to do next")
    .option("--pem", "print the roots to trust, in PEM")
    .action(act(async () => (await commands()).show));
  examples(show, ["insitu ca show", "insitu ca show --pem > ca.pem"]);
  const rotate = ca
    .command("rotate")
    .description("first step: make a new root, which agents come to trust beside the present one")
    .action(act(async () => (await commands()).rotate));
  examples(rotate, ["insitu ca rotate"]);
  const request = ca
    .command("request")
    .description("first step with a root of your own: a request for an intermediate, to be signed with it")
    .action(act(async () => (await commands()).request));
  examples(
    request,
    ["insitu ca request > insitu.csr"],
    "The key of the intermediate is made at the server and stays there: docs/runbooks/ca-rotation.md.",
  );
  const imported = ca
    .command("import <file>")
    .description('the certificate that was signed, then those above it, the root last; "-": standard input')
    .action(act(async () => (await commands()).importChain));
  examples(imported, ["insitu ca import chain.pem", "cat insitu.crt root.crt | insitu ca import -"]);
  const activate = ca
    .command("activate")
    .description("second step: certificates of agents come from the new issuer; agents renew at once")
    .option("--force", "also while agents have not said that they trust its root")
    .action(act(async () => (await commands()).activate));
  examples(activate, ["insitu ca activate"]);
  const retire = ca
    .command("retire <issuer>")
    .description("third step: nobody trusts the issuer any more, and its key is destroyed")
    .option("--force", "also while agents need it: they have to join again")
    .action(act(async () => (await commands()).retire));
  examples(retire, ["insitu ca retire 0f3a9c27d1e4b586"]);
}
