/** The options and the help of `insitu nats`. */
import { type Command, Option } from "commander";

interface Parts {
  /** Runs `insitu nats init`. */
  init: (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
  /** Of an option that may be repeated. */
  collect(value: string, previous?: string[]): string[];
}

export function natsCommands(program: Command, { init: action, examples, collect }: Parts): void {
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
    .action(action);
  examples(
    init,
    [
      "insitu nats init --out nats --host nats.example.org",
      "insitu nats init --out nats --nodes 3 --host n1.example.org,n2.example.org,n3.example.org",
      "insitu nats init --out renewed --secrets /etc/insitu/secrets --host nats.example.org",
    ],
    "A host that is given as an address is listened on there alone. docs/cluster.md says what comes after.",
  );
  examples(nats, ["insitu nats init --out nats --host nats.example.org"]);
}
