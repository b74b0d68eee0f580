/** The options and the help of `insitu backup`. */
import type { Command } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

interface Parts {
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
}

export function backupCommands(program: Command, { act, examples }: Parts): void {
  const commands = () => import("./commands/backup.ts");
  const backup = program
    .command("backup")
    .description("copy the whole durable state of a server that goes on working, and bring it back");
  const place = (command: Command): Command =>
    command
      .option("--data <dir>", "data directory of the server (INSITU_DATA, ./.insitu/server)")
      .option("--secrets <dir>", "directory of its secrets (INSITU_SECRETS, <data>/secrets)")
      .option("--nats-url <url>", "its NATS, when that is not its own (INSITU_NATS_URL)");
  const passphrase = (command: Command): Command =>
    command.option(
      "--passphrase-file <file>",
      "what seals the server's keys: the first line of a file, or of standard input with - (INSITU_BACKUP_PASSPHRASE)",
    );
  const beside =
    "Runs on the host of a server, as the same user, with the --data, --secrets and --nats-url of that server.";

  const create = passphrase(place(backup.command("create")))
    .description("write a backup; the server goes on working meanwhile")
    .option("--out <file>", "the file to write; none is replaced (default: insitu-<time>.tar here)")
    .option("--without-secrets", "leave the keys out: you keep the directory of secrets yourself")
    .action(act(async () => (await commands()).create));
  examples(
    create,
    [
      "insitu backup create --data /var/lib/insitu --passphrase-file /etc/insitu/backup-passphrase",
      "insitu backup create --nats-url tls://nats.example.org:4222 --secrets /etc/insitu/secrets --out monday.tar",
    ],
    beside,
  );

  const verify = passphrase(backup.command("verify <file>"))
    .description("read a backup to its end, and say which part of it is damaged; exit 0 when none is")
    .action(act(async () => (await commands()).verify));
  examples(verify, [
    "insitu backup verify monday.tar",
    "insitu backup verify monday.tar --passphrase-file /etc/insitu/backup-passphrase -o json",
  ]);

  const restore = passphrase(place(backup.command("restore <file>")))
    .description("put a backup into an empty data directory, or into a NATS without streams")
    .option("--without-secrets", "leave the keys of the backup where they are")
    .option(
      "--stream-replicas <n>",
      "of a NATS cluster's servers, how many keep each stream (default: as before)",
    )
    .option("--nothing-ran-since", "the server was stopped at once after the backup: a move, not a disaster")
    .action(act(async () => (await commands()).restore));
  examples(
    restore,
    [
      "insitu backup restore monday.tar --data /var/lib/insitu --passphrase-file passphrase",
      "insitu backup restore monday.tar --nats-url tls://nats.example.org:4222 --secrets /etc/insitu/secrets",
    ],
    "What was done after the backup is not in it: docs/runbooks/backup-and-restore.md says what follows from that.",
  );
  examples(backup, [
    "insitu backup create --data /var/lib/insitu --passphrase-file passphrase --out monday.tar",
    "insitu backup verify monday.tar",
    "insitu backup restore monday.tar --data /var/lib/insitu --passphrase-file passphrase",
  ]);
}
