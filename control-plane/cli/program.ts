/** The commands, their options and their help. What they do is loaded when they are called, so that all start fast. */
import { Command, CommanderError, Option } from "commander";
import { InsituError } from "../../shared/errors.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import { SOFTWARE_VERSION } from "../../shared/wire/protocol.ts";
import { RIGHTS, ROLES } from "../access/rights.ts";
import { agentsCommand } from "./agents-program.ts";
import { approvalCommands } from "./approval-program.ts";
import { auditCommands } from "./audit-program.ts";
import { authorityCommands } from "./authority-program.ts";
import { backupCommands } from "./backup-program.ts";
import { reportError } from "./errors.ts";
import { EXIT, exitCodesHelp } from "./exit-codes.ts";
import { type GlobalOptions, Invocation, type World } from "./invocation.ts";
import { natsCommands } from "./nats-program.ts";
import { FORMATS } from "./output.ts";
import { signInCommands } from "./sign-in-program.ts";
import { signingCommands } from "./signing-program.ts";
import type { Screen } from "./terminal.ts";

type Action = (invocation: Invocation, args: string[], options: never) => Promise<number>;

const KINDS = "Kinds: pipelines, datasets, environments, pools, access-policies, runs, agents.";
const DELETED_KINDS =
  "Kinds: pipelines, datasets, environments, pools, access-policies. Runs and agents cannot be deleted.";

/** Runs one command line, without the program's name. Gives the exit code; prints errors itself. */
export async function runCommand(argv: readonly string[], world: World): Promise<number> {
  const state = { code: EXIT.ok as number };
  const program = build(world, state);
  if (argv.length === 0) {
    program.outputHelp();
    return EXIT.ok;
  }
  try {
    // Only in front: further on, `--version` names a version of a pipeline.
    const words = argv[0] === "--version" ? ["-V"] : [...argv];
    await program.parseAsync(words, { from: "user" });
    return state.code;
  } catch (thrown) {
    if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? EXIT.ok : EXIT.usage;
    return await report(thrown, world, program.opts<GlobalOptions>());
  }
}

async function report(thrown: unknown, world: World, options: GlobalOptions): Promise<number> {
  const { terminal, signal } = world;
  const error = InsituError.from(signal.aborted ? signal.reason : thrown);
  if ((error.cause as NodeJS.ErrnoException | undefined)?.code === "EPIPE") return EXIT.brokenPipe;
  const color = options.color === false ? { ...terminal, colorAllowed: false } : terminal;
  await reportError(error, color);
  return error.exitCode;
}

function build(world: World, state: { code: number }): Command {
  const program = new Command("insitu");
  /** Opens what a command needs, closes it whatever happens, keeps the exit code. */
  const act =
    (load: () => Promise<Action>) =>
    async (...given: unknown[]): Promise<void> => {
      const command = given.at(-1) as Command;
      const invocation = new Invocation(world, program.opts<GlobalOptions>());
      try {
        const action = (await load()) as (
          invocation: Invocation,
          args: string[],
          options: object,
        ) => Promise<number>;
        state.code = await action(invocation, command.args, command.opts());
      } finally {
        invocation.close();
      }
    };

  program
    .description("Runs pipelines across networks that data may not leave")
    .version(`insitu ${SOFTWARE_VERSION}`, "-V", "the version; `insitu version` has more")
    .helpOption("-h, --help", "show this help")
    .addOption(
      new Option("-o, --output <format>", "how results are printed").choices(FORMATS).default("table"),
    )
    .option(
      "--server <url>",
      "address of the server, or of several replicas with commas (INSITU_SERVER, else .insitu/context.json)",
    )
    .option("--token <token>", "API token; INSITU_TOKEN keeps it out of the list of processes")
    .option("--ca-file <file>", "certificate authority to trust, PEM (INSITU_CA_FILE)")
    .option("--no-color", "no colours (also NO_COLOR)")
    .configureHelp({ showGlobalOptions: true, sortSubcommands: false })
    .configureOutput({
      writeOut: (text) => write(world.terminal.out, text),
      writeErr: (text) => write(world.terminal.err, text),
      getOutHelpWidth: () => (world.terminal.out.isTty ? world.terminal.out.columns() : 100),
      getErrHelpWidth: () => (world.terminal.err.isTty ? world.terminal.err.columns() : 100),
    })
    .showSuggestionAfterError(true)
    .showHelpAfterError("(add --help for what it takes)")
    .helpCommand(false)
    .exitOverride();
  examples(program, [
    "insitu dev                                  everything on this machine, with demonstration sites",
    "insitu apply -f pipelines/",
    "insitu plan penguins                        where each step may run, and why not elsewhere",
    "insitu run penguins --watch",
    "insitu runs logs last -f",
    "insitu help exit-codes",
  ]);

  serverCommands(program, act);
  resourceCommands(program, act);
  runCommands(program, act);
  agentCommands(program, act);
  accessCommands(program, act);
  signingCommands(program, { act, examples, collect });
  authorityCommands(program, { act, examples });
  approvalCommands(program, { act, examples });
  backupCommands(program, { act, examples });
  auditCommands(program, { act, examples });
  natsCommands(program, { act, examples, collect });
  otherCommands(program, act, world);
  return program;
}

/** The parser does not wait; the process ends only after what was written. */
function write(screen: Screen, text: string): void {
  screen.write(text).catch(() => undefined);
}

type Act = (load: () => Promise<Action>) => (...given: unknown[]) => Promise<void>;

function serverCommands(program: Command, act: Act): void {
  // `insitu server` itself is taken before the commands are built: see main.ts. This is for the help.
  program
    .command("server")
    .description("run one replica of the control plane (insitu server --help)")
    .allowUnknownOption();

  const dev = program
    .command("dev")
    .description("everything on this machine: a server, an agent per demonstration site, and a run to watch")
    .option("--once", "stop after the demonstration; the exit code says whether it held")
    .option("--data <dir>", "where everything is kept", ".insitu")
    .option("--port <n>", "port of API and console (default: 7070, else a free one)")
    .option("--gateway-port <n>", "port of the gateway for agents (default: 7443, else a free one)")
    .addOption(
      new Option("--example <name>", "the demonstration to run")
        .choices(["penguins", "flights", "federated"])
        .default("penguins"),
    )
    .option("--fresh", "begin anew: forget the runs and agents of earlier starts")
    .option("--keep", "when the demonstration fails, stay up for a look instead of stopping")
    .action(act(async () => (await import("./dev/dev.ts")).dev));
  examples(dev, [
    "insitu dev",
    "insitu dev --once",
    "insitu dev --example federated --data ./demo --port 8080",
  ]);
}

function resourceCommands(program: Command, act: Act): void {
  const resources = () => import("./commands/resources.ts");
  const documents = () => import("./commands/documents.ts");
  const apply = program
    .command("apply")
    .description("create or change resources from documents, all of them or none")
    .option(
      "-f, --file <path>",
      "file, folder (to any depth), or - for standard input; may be repeated",
      collect,
    )
    .option("--dry-run", "say what would change, and change nothing")
    .action(act(async () => (await documents()).apply));
  examples(apply, [
    "insitu apply -f examples/penguins/",
    "insitu apply -f sites.yaml -f pipeline.yaml --dry-run",
    "cat pipeline.yaml | insitu apply -f -",
  ]);

  const get = program
    .command("get <kind> [name]")
    .description("list the resources of a kind, or show one")
    .action(act(async () => (await resources()).get));
  examples(get, ["insitu get pipelines", "insitu get dataset/penguins-biscoe -o yaml"], KINDS);

  const describe = program
    .command("describe <kind> [name]")
    .description("one resource in full, with its versions")
    .action(act(async () => (await resources()).describe));
  examples(describe, ["insitu describe pipeline penguins", "insitu describe environment/hq"], KINDS);

  const remove = program
    .command("delete <kind> [name]")
    .description("delete a resource")
    .action(act(async () => (await resources()).remove));
  examples(remove, ["insitu delete pipeline penguins", "insitu delete pool/licences"], DELETED_KINDS);

  const plan = program
    .command("plan [name]")
    .description("where each step may run, and why not elsewhere; exit 5 when one can be placed nowhere")
    .option("-f, --file <path>", "documents that need not be applied yet; may be repeated", collect)
    .option("--version <digest>", "another version than the newest")
    .action(act(async () => (await documents()).plan));
  examples(plan, ["insitu plan penguins", "insitu plan -f examples/refused/wrong-move.yaml"]);
}

function runCommands(program: Command, act: Act): void {
  const commands = () => import("./commands/runs.ts");
  const run = program
    .command("run <name>")
    .description("start a run of a pipeline")
    .option("-p, --param <name=value>", "value of a parameter; may be repeated", collect)
    .option("--version <digest>", "another version than the newest")
    .option("-w, --watch", "show its steps live, and end with its result: 0 succeeded, 3 not")
    .option("--wait", "the same without showing anything")
    .option(
      "--timeout <duration>",
      "with --watch or --wait: give up waiting after this (exit 124); the run goes on",
    )
    .action(act(async () => (await import("./commands/run.ts")).run));
  examples(run, [
    "insitu run penguins --watch",
    "insitu run nightly -p day=2026-11-24 --wait --timeout 30m",
    "insitu run penguins -o json",
  ]);

  const runs = program.command("runs").description("list, show, watch and cancel runs, and read their logs");
  examples(runs, [
    "insitu runs list --status failed",
    "insitu runs show last",
    "insitu runs logs last merge -f",
  ]);
  const list = runs
    .command("list")
    .description("runs, the newest first")
    .option("--pipeline <name>", "of this pipeline")
    .addOption(
      new Option("--status <status>", "in this state").choices([
        "running",
        "cancelling",
        "succeeded",
        "failed",
        "cancelled",
      ]),
    )
    .option("-n, --limit <n>", "at most so many", "20")
    .action(act(async () => (await commands()).list));
  examples(list, ["insitu runs list", "insitu runs list --pipeline penguins --status failed -o json"]);
  const ids = 'RUN is an id, the beginning of one, or "last".';
  const show = runs
    .command("show <run>")
    .description("steps, attempts, outputs, artifacts, errors, and the bytes that left each site")
    .action(act(async () => (await commands()).show));
  examples(show, ["insitu runs show last", "insitu runs show 01k9 -o json"], ids);
  const watch = runs
    .command("watch <run>")
    .description("follow a run until it ends; exit 0 when it succeeded, 3 when not")
    .option("--timeout <duration>", "give up waiting after this (exit 124); the run goes on")
    .action(act(async () => (await import("./commands/run.ts")).watch));
  examples(watch, ["insitu runs watch last"], ids);
  const logs = runs
    .command("logs <run> [step]")
    .description("what the steps wrote; bytes as they came when one step is named")
    .option("-f, --follow", "go on until the run ends")
    .option("--timestamps", "when each line was written, before it")
    .option("--raw", "bytes as they came; control characters reach your terminal")
    .addOption(new Option("--stream <name>", "only this stream").choices(["stdout", "stderr", "agent"]))
    .option("--attempt <n>", "only this attempt")
    .action(act(async () => (await import("./commands/logs.ts")).logs));
  examples(
    logs,
    [
      "insitu runs logs last -f",
      "insitu runs logs last merge --stream stderr",
      "insitu runs logs 01k9 export --raw > export.bin",
    ],
    ids,
  );
  const cancel = runs
    .command("cancel <run>")
    .description("stop a run and the processes of its steps")
    .option("--reason <text>", "kept with the run", "")
    .action(act(async () => (await commands()).cancel));
  examples(cancel, ['insitu runs cancel last --reason "wrong day"'], ids);
  const resolve = runs
    .command("resolve <run> <step>")
    .description("decide what became of a step whose agent is cut off; kept in the run's history")
    .addOption(
      new Option("--as <what>", "what became of it; reassign: another agent gets it")
        .choices(["succeeded", "failed", "reassign"])
        .makeOptionMandatory(),
    )
    .requiredOption("--reason <text>", "how you know; kept with the run")
    .option("--even-if-it-ran", "start a step that is `once` again although it may have run")
    .action(act(async () => (await commands()).resolve));
  examples(
    resolve,
    [
      'insitu runs resolve last load --as failed --reason "the host burnt down"',
      'insitu runs resolve 01k9 load --as reassign --reason "never started, says the site"',
    ],
    ids,
  );
}

function agentCommands(program: Command, act: Act): void {
  agentsCommand(program, { act, examples });

  const servers = program.command("servers").description("replicas of the control plane");
  const listServers = servers
    .command("list")
    .description("replicas, whether they are alive, and which shards of runs each decides for")
    .action(act(async () => (await import("./commands/servers.ts")).list));
  examples(listServers, ["insitu servers list", "insitu servers list -o json"]);
  examples(servers, ["insitu servers list"]);

  const kept = () => import("./commands/poison.ts");
  const poison = program
    .command("poison")
    .description("messages that nobody could make sense of; they are set aside and hold nothing up");
  const listPoison = poison
    .command("list")
    .description("what was set aside, oldest first, with the reason")
    .action(act(async () => (await kept()).list));
  examples(listPoison, ["insitu poison list", "insitu poison list -o json"]);
  const showPoison = poison
    .command("show <id>")
    .description("one of them in full, with what it held")
    .action(act(async () => (await kept()).show));
  examples(showPoison, ["insitu poison show 3", "insitu poison show 3 -o json"]);
  const dropPoison = poison
    .command("drop <id>")
    .description("forget a copy; what it was a copy of stays as it is")
    .action(act(async () => (await kept()).drop));
  examples(dropPoison, ["insitu poison drop 3"]);
  examples(poison, ["insitu poison list", "insitu poison show 3"]);

  const joinTokens = () => import("./commands/join-tokens.ts");
  const tokens = program.command("join-token").description("let new agents join");
  const create = tokens
    .command("create")
    .description("a token with which an agent joins an environment; it is shown once")
    .requiredOption("--environment <name>", "the environment")
    .option("--ttl <duration>", "how long it is good", "1h")
    .option("--uses <n>", "how many agents may use it", "1")
    .option("--approval", "each agent waits until somebody approves it (`insitu agents approve`)")
    .action(act(async () => (await joinTokens()).create));
  examples(create, [
    "insitu join-token create --environment hq",
    "insitu join-token create --environment hq --ttl 10m --uses 3",
    "insitu join-token create --environment hq --ttl 24h --approval",
  ]);
  const listTokens = tokens
    .command("list")
    .description("join tokens that let somebody in, without their secrets")
    .option("--environment <name>", "only those of one environment")
    .option("--all", "also those of the last 31 days that are used up, expired or revoked")
    .action(act(async () => (await joinTokens()).list));
  examples(listTokens, ["insitu join-token list", "insitu join-token list --all --environment hq"]);
  const showToken = tokens
    .command("show <id>")
    .description("one join token: who made it, what is left of it, and which agents came with it")
    .action(act(async () => (await joinTokens()).show));
  examples(showToken, ["insitu join-token show 0f3a9c27d1e4b586"]);
  const revokeToken = tokens
    .command("revoke <id>")
    .description("a join token lets nobody in any more; agents that came with it stay")
    .action(act(async () => (await joinTokens()).revoke));
  examples(revokeToken, ["insitu join-token revoke 0f3a9c27d1e4b586"]);
  examples(tokens, ["insitu join-token create --environment hq", "insitu join-token list"]);
}

function accessCommands(program: Command, act: Act): void {
  const commands = () => import("./commands/access.ts");
  const auth = program.command("auth").description("who you are, and what you may do");
  examples(auth, [
    "insitu auth login",
    "insitu auth whoami",
    "insitu auth can-i runs:start pipeline/nightly",
  ]);
  signInCommands(auth, { act, examples });
  const canI = auth
    .command("can-i <right> [target]")
    .description(
      "whether you have a right, over everything or on one pipeline or environment, and what decides it",
    )
    .option("--pipeline <name>", "on this pipeline, like pipeline/NAME")
    .option("--environment <name>", "in this environment, like environment/NAME")
    .option("--as-group <name>", "whether somebody in this group who has no role has it")
    .action(act(async () => (await commands()).canI));
  examples(
    canI,
    [
      "insitu auth can-i runs:start pipeline/nightly",
      "insitu auth can-i agents:revoke --environment hq",
      "insitu auth can-i runs:start --pipeline payroll --as-group payroll",
      "insitu auth can-i tokens:manage",
    ],
    `Exit 0 for yes, 6 for no, 9 when a second person has to approve it.\nRights: ${RIGHTS.join(", ")}.`,
  );

  const tokens = program.command("tokens").description("API tokens for people and programs");
  examples(tokens, [
    "insitu tokens create ci --role runner --pipeline nightly",
    "insitu tokens list",
    "insitu tokens revoke ci",
  ]);
  const create = tokens
    .command("create <name>")
    .description("a token with one role; it is shown once, and its name is never given again")
    .addOption(new Option("--role <role>", "what it may do").choices(ROLES).makeOptionMandatory())
    .option("--pipeline <name>", "over this pipeline and its runs alone; may be repeated", collect)
    .option("--group <name>", "count it among this group, for access policies; may be repeated", collect)
    .option("--ttl <duration>", "how long it is good", "90d")
    .action(act(async () => (await commands()).createToken));
  examples(
    create,
    [
      "insitu tokens create ci --role runner --pipeline nightly --pipeline weekly",
      "insitu tokens create ada --role operator --ttl 30d",
      "insitu tokens create payroll-ci --role none --group payroll",
    ],
    "docs/security/access.md says what each role may do.",
  );
  const list = tokens
    .command("list")
    .description("all tokens, also those that are revoked or have expired")
    .action(act(async () => (await commands()).listTokens));
  examples(list, ["insitu tokens list", "insitu tokens list -o json"]);
  const revoke = tokens
    .command("revoke <name>")
    .description("end a token; it is refused from then on")
    .action(act(async () => (await commands()).revokeToken));
  examples(revoke, ["insitu tokens revoke ci"]);
}

function otherCommands(program: Command, act: Act, world: World): void {
  const completion = program
    .command("completion <shell>")
    .description("print the completion script for bash, zsh or fish")
    .action(act(async () => (await import("./completion.ts")).completion));
  examples(completion, [
    "source <(insitu completion bash)                          in ~/.bashrc",
    "insitu completion zsh > ~/.zfunc/_insitu                  with ~/.zfunc in fpath",
    "insitu completion fish > ~/.config/fish/completions/insitu.fish",
  ]);

  const version = program
    .command("version")
    .description("version of this program, and of the server when it can be reached")
    .option("--client", "of this program alone")
    .action(act(async () => (await import("./commands/version.ts")).version));
  examples(version, ["insitu version", "insitu version -o json"]);

  const help = program
    .command("help [words...]")
    .description("help on a command, or on exit-codes")
    .action(async (words: string[]) => {
      if (words[0] === "exit-codes") {
        await world.terminal.out.write(exitCodesHelp());
        return;
      }
      let command = program;
      for (const word of words) {
        const next = command.commands.find((one) => one.name() === word);
        if (!next)
          throw new InsituError(
            "request.invalid",
            unknownName({ kind: "command", name: word, known: command.commands.map((one) => one.name()) }),
          );
        command = next;
      }
      command.outputHelp();
    });
  examples(help, ["insitu help runs logs", "insitu help exit-codes"]);

  program
    .command("__complete [words...]", { hidden: true })
    .allowUnknownOption()
    .action(
      act(async () => {
        const { complete } = await import("./completion.ts");
        return (invocation: Invocation, words: string[]) => complete(invocation, program, words);
      }),
    );
}

function examples(command: Command, lines: readonly string[], note = ""): void {
  const text = lines.map((line) => `  ${line}`).join("\n");
  command.addHelpText("after", `${note ? `\n${note}\n` : ""}\nExamples:\n${text}`);
}

function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}
