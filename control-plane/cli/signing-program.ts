/** The options and the help of `insitu sign` and `insitu verify`. */
import { type Command, Option } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

interface Parts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
  collect(value: string, previous?: string[]): string[];
}

const WHY =
  "Sites may run signed pipelines alone, whatever the server says: docs/security/signed-pipelines.md.";

export function signingCommands(program: Command, { act, examples, collect }: Parts): void {
  const commands = () => import("./commands/sign.ts");
  const sign = program
    .command("sign")
    .description("sign the pipelines in a file with a key that the server does not have")
    .option("-f, --file <file>", "the file; its other documents stay as they are")
    .option("--key <file>", "your private key: Ed25519 or EC over P-256, PKCS#8 in PEM")
    .option(
      "--expires <duration>",
      "how long sites may run it, like 90d (default: as long as they trust the key)",
    )
    .option(
      "--out <file>",
      "where the signed document goes, beside the files of its steps (default: standard output)",
    )
    .action(act(async () => (await commands()).signDocuments));
  examples(
    sign,
    [
      "insitu sign keygen author.pem",
      "insitu sign -f pipeline.yaml --key author.pem --expires 90d --out pipeline.yaml",
      "insitu sign -f pipeline.yaml --key author.pem | insitu apply -f -",
    ],
    `${WHY}\nA signature is of one version: sign again after each change. Signatures by other keys are kept.`,
  );
  const keygen = sign
    .command("keygen <file>")
    .description("make a key pair: the private key goes to FILE, the public one beside it")
    .addOption(new Option("--type <type>", "kind of key").choices(["ed25519", "p256"]).default("ed25519"))
    .action(act(async () => (await commands()).keygen));
  examples(keygen, ["insitu sign keygen author.pem", "insitu sign keygen ci.pem --type p256"]);
  const verify = program
    .command("verify")
    .description("whether every pipeline is signed by one of these keys as it stands; exit 1 when one is not")
    .option("-f, --file <path>", "file, folder, or - for standard input; may be repeated", collect)
    .option("--key <file>", "public key to trust, PEM; may be repeated", collect)
    .action(act(async () => (await commands()).verifyDocuments));
  examples(
    verify,
    [
      "insitu verify -f pipeline.yaml --key author.pub.pem",
      "insitu verify -f pipelines/ --key author.pub.pem --key ci.pub.pem -o json",
    ],
    WHY,
  );
}
