/** The options and the help of `insitu nats`. */
import { type Command, Option } from "commander";
import type { Invocation } from "./invocation.ts";

const IMPORT_FILE = `The file, YAML or JSON:
  streams: { account: A…, signingKey: SA… }
  environments:
    north: { account: A…, signingKey: SA… }`;

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

interface Parts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
  /** Of an option that may be repeated. */
  collect(value: string, previous?: string[]): string[];
}

export function natsCommands(program: Command, { act, examples, collect }: Parts): void {
  const nats = program
    .command("nats")
    .description("a NATS of your own, with an account for each environment");
  const init = nats
    .command("init")
    .description("write keys, certificates and the configuration of one nats-server or of a cluster")
    .requiredOption("--out <dir>", "directory to make; what exists is not overwritten")
    .requiredOption(
      "--host <name>",
      "where a node is reached, a name or an address; commas between several, or repeated",
      collect,
    )
    .option("--nodes <n>", "1, 3 or 5; checked against --host")
    .option(
      "--secrets <dir>",
      "directory of the server's secrets; keys that are there are used (<out>/secrets)",
    )
    .option("--port <n>", "of each node, for clients", "4222")
    .option("--route-port <n>", "of each node, for the other nodes", "6222")
    .option("--monitor-port <n>", "of each node, on its loopback; 0: none", "8222")
    .option("--install-dir <dir>", "on the nodes, above the directory of each", "/etc/insitu/nats")
    .option("--data-dir <dir>", "on the nodes, above the streams of each", "/var/lib/insitu/nats")
    .addOption(
      new Option("--sync <when>", "interval for nats-server before 2.10: a power cut takes minutes")
        .choices(["always", "interval"])
        .default("always"),
    )
    .option(
      "--certificate <file>",
      "on the nodes, of another authority, for clients; its names must include the host",
    )
    .option("--key <file>", "on the nodes, the key of that certificate")
    .option("--trust-domain <name>", "of an authority that is made", "insitu.local")
    .action(act(async () => (await import("./commands/nats.ts")).init));
  examples(
    init,
    [
      "insitu nats init --out nats --host nats.example.org",
      "insitu nats init --out nats --nodes 3 --host n1.example.org,n2.example.org,n3.example.org",
      "insitu nats init --out renewed --secrets /etc/insitu/secrets --host nats.example.org",
    ],
    "A host that is given as an address is listened on there alone. docs/cluster.md says what comes after.",
  );
  const config = nats
    .command("config")
    .description(
      "write the configurations anew: other keys, addresses or certificates; the rest as init was told",
    )
    .requiredOption("--out <dir>", "directory to make; what exists is not overwritten")
    .requiredOption("--secrets <dir>", "directory of the server's secrets, where init keeps what it was told")
    .option("--host <name>", "all hosts anew; commas between several, or repeated", collect)
    .option("--nodes <n>", "1, 3 or 5; checked against --host")
    .option("--port <n>", "of each node, for clients")
    .option("--route-port <n>", "of each node, for the other nodes")
    .option("--monitor-port <n>", "of each node, on its loopback; 0: none")
    .option("--install-dir <dir>", "on the nodes, above the directory of each")
    .option("--data-dir <dir>", "on the nodes, above the streams of each")
    .addOption(
      new Option("--sync <when>", "interval for nats-server before 2.10").choices(["always", "interval"]),
    )
    .option("--certificate <file>", "on the nodes, of another authority, for clients")
    .option("--key <file>", "on the nodes, the key of that certificate")
    .action(act(async () => (await import("./commands/nats.ts")).config));
  examples(
    config,
    [
      "insitu nats config --secrets /etc/insitu/secrets --out nats-2",
      "insitu nats config --secrets /etc/insitu/secrets --out nats-2 --host nats2.example.org",
    ],
    "Certificates are made anew each time. Copy each directory to its host, and restart one nats-server after the other.",
  );
  const requirements = nats
    .command("requirements <file>")
    .description(
      "what the JWTs of accounts have to say that somebody else makes for Insitu; see docs/cluster.md",
    )
    .action(act(async () => (await import("./commands/nats-import.ts")).requirements));
  examples(requirements, ["insitu nats requirements accounts.yaml"], IMPORT_FILE);
  const imported = nats
    .command("import <file>")
    .description('bring accounts that somebody else made, with a signing key of each; "-": standard input')
    .requiredOption("--secrets <dir>", "directory of the server's secrets")
    .action(act(async () => (await import("./commands/nats-import.ts")).importAccounts));
  examples(
    imported,
    ["insitu nats import accounts.yaml --secrets /etc/insitu/secrets"],
    `${IMPORT_FILE}\nIt takes the place of what was brought before. Restart the replicas then, with --nats-url and no user in it.`,
  );
  const rotate = nats
    .command("rotate")
    .description("other signing keys, in three steps; without --what: how far it is and what comes next")
    .addOption(
      new Option(
        "--what <keys>",
        "accounts: sign users, the server's too; operator: sign accounts; tls: the authority between nodes",
      ).choices(["accounts", "operator", "tls"]),
    )
    .option("--activate", "second step: the new key signs")
    .option("--retire", "third step: what the former key has signed is void")
    .option(
      "--force",
      "also while agents hold what the former key has signed; of tls: without asking the nodes",
    )
    .option("--data <dir>", "the server's data directory (INSITU_DATA)")
    .option("--secrets <dir>", "its directory of secrets (INSITU_SECRETS)")
    .option("--nats-url <url>", "its NATS, when that is not its own (INSITU_NATS_URL)")
    .action(act(async () => (await import("./commands/nats-rotate.ts")).rotate));
  examples(
    rotate,
    [
      "insitu nats rotate --secrets /etc/insitu/secrets --nats-url tls://nats.example.org:4222",
      "insitu nats rotate --what accounts --secrets /etc/insitu/secrets --nats-url tls://nats.example.org:4222",
      "insitu nats rotate --what accounts --activate --data /var/lib/insitu",
    ],
    "Runs on the host of a replica, as the same user, while replicas run. Steps run on: docs/runbooks/nats-key-rotation.md.",
  );
  examples(nats, [
    "insitu nats init --out nats --host nats.example.org",
    "insitu nats rotate --data /var/lib/insitu",
  ]);
}
