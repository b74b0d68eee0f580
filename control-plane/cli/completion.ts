/** Completion: scripts for three shells, all of which ask `insitu __complete WORD…` for candidates. */
import type { Command } from "commander";
import { InsituError } from "../../shared/errors.ts";
import type { Kind } from "../../shared/model/spec.ts";
import { EXIT } from "./exit-codes.ts";
import type { Invocation } from "./invocation.ts";
import { parseKind } from "./kinds.ts";

/** Somebody waits with a finger on the tab key. */
const SERVER_WAIT_MS = 700;
const RUNS_MAX = 50;
/** Tells the scripts to offer files, which the shells do better. */
const FILES = ":files";

const SCRIPTS: Record<string, string> = {
  bash: `# insitu completion for bash: source <(insitu completion bash)
_insitu() {
  local line
  COMPREPLY=()
  while IFS= read -r line; do
    [[ -n $line ]] && COMPREPLY+=("\${line%%$'\\t'*}")
  done < <("\${COMP_WORDS[0]}" __complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  if [[ \${#COMPREPLY[@]} -eq 1 && \${COMPREPLY[0]} == :files ]]; then
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -f -- "\${COMP_WORDS[COMP_CWORD]}")
  fi
}
complete -F _insitu insitu
`,
  zsh: `#compdef insitu
# insitu completion for zsh: insitu completion zsh > "\${fpath[1]}/_insitu"
_insitu() {
  local -a lines candidates
  local line
  lines=("\${(@f)$("\${words[1]}" __complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ \${lines[1]} == :files ]]; then _files; return; fi
  for line in $lines; do
    [[ -n $line ]] && candidates+=("\${\${line%%$'\\t'*}//:/\\\\:}:\${line#*$'\\t'}")
  done
  _describe 'insitu' candidates
}
if [ "$funcstack[1]" = "_insitu" ]; then _insitu; else compdef _insitu insitu; fi
`,
  fish: `# insitu completion for fish: insitu completion fish > ~/.config/fish/completions/insitu.fish
function __insitu_complete
  set -l words (commandline -opc) (commandline -ct)
  set -l lines ($words[1] __complete -- $words[2..-1] 2>/dev/null)
  if test "$lines[1]" = ":files"
    __fish_complete_path (commandline -ct)
  else
    printf '%s\\n' $lines
  end
end
complete -c insitu -f -a '(__insitu_complete)'
`,
};

export async function completion(invocation: Invocation, [shell = ""]: string[]): Promise<number> {
  const script = SCRIPTS[shell];
  if (script === undefined) {
    throw new InsituError("request.invalid", `completion is there for bash, zsh and fish, not "${shell}"`);
  }
  await invocation.output.terminal.out.write(script);
  return EXIT.ok;
}

interface Candidate {
  word: string;
  about: string;
}

/** One candidate a line, with a tab and what it is. Silent about everything that goes wrong. */
export async function complete(
  invocation: Invocation,
  program: Command,
  words: readonly string[],
): Promise<number> {
  const candidates = await candidatesFor(invocation, program, words);
  const text = candidates.map(({ word, about }) => `${word}\t${about.replace(/\s+/g, " ")}\n`).join("");
  await invocation.output.terminal.out.write(text);
  return EXIT.ok;
}

async function candidatesFor(
  invocation: Invocation,
  program: Command,
  words: readonly string[],
): Promise<Candidate[]> {
  const current = words.at(-1) ?? "";
  const { command, given, pendingOption } = walk(program, words.slice(0, -1));
  const matching = (all: readonly Candidate[]) =>
    all.filter(({ word }) => word === FILES || word.startsWith(current));
  if (pendingOption) return matching(await valuesOf(invocation, pendingOption));
  if (current.startsWith("-")) return matching(optionsOf(command, program));
  const commands = command.commands
    .filter((one) => !one.name().startsWith("__"))
    .map((one) => ({ word: one.name(), about: one.description() }));
  if (commands.length > 0 && given.length === 0) return matching(commands);
  return matching(await argumentsOf(invocation, command, given, current));
}

function walk(program: Command, words: readonly string[]) {
  let command = program;
  const given: string[] = [];
  let pendingOption: string | null = null;
  for (const word of words) {
    if (pendingOption !== null) {
      pendingOption = null;
      continue;
    }
    if (word.startsWith("-")) {
      const option = [...command.options, ...program.options].find(
        ({ short, long }) => word === short || word === long,
      );
      if (option?.required) pendingOption = option.long ?? word;
      continue;
    }
    const next = given.length === 0 ? command.commands.find((one) => one.name() === word) : undefined;
    if (next) command = next;
    else given.push(word);
  }
  return { command, given, pendingOption };
}

function optionsOf(command: Command, program: Command): Candidate[] {
  const all = command === program ? command.options : [...command.options, ...program.options];
  return all.flatMap(({ long, description }) => (long ? [{ word: long, about: description }] : []));
}

async function valuesOf(invocation: Invocation, option: string): Promise<Candidate[]> {
  const words = (all: readonly string[]) => all.map((word) => ({ word, about: "" }));
  switch (option) {
    case "--file":
    case "--ca-file":
    case "--data":
      return words([FILES]);
    case "--output":
      return words(["table", "json", "yaml"]);
    case "--stream":
      return words(["stdout", "stderr", "agent"]);
    case "--status":
      return words(["running", "cancelling", "succeeded", "failed", "cancelled"]);
    case "--example":
      return words(["penguins", "flights", "federated"]);
    case "--pipeline":
      return names(invocation, "pipelines", "");
    case "--environment":
      return names(invocation, "environments", "");
    default:
      return [];
  }
}

async function argumentsOf(
  invocation: Invocation,
  command: Command,
  given: readonly string[],
  current: string,
): Promise<Candidate[]> {
  const path = `${command.parent?.name() ?? ""} ${command.name()}`;
  const at = given.length;
  switch (command.name()) {
    case "get":
    case "describe":
    case "delete":
      if (at === 0 && current.includes("/"))
        return names(invocation, current.split("/")[0]!, `${current.split("/")[0]}/`);
      if (at === 0)
        return ["pipelines", "datasets", "environments", "pools"]
          .concat(command.name() === "delete" ? [] : ["runs", "agents"])
          .map((word) => ({ word, about: "" }));
      return at === 1 ? names(invocation, given[0]!, "") : [];
    case "plan":
    case "run":
      return at === 0 ? names(invocation, "pipelines", "") : [];
    case "completion":
      return at === 0 ? Object.keys(SCRIPTS).map((word) => ({ word, about: "" })) : [];
    case "help":
      return at === 0 ? [{ word: "exit-codes", about: "what the exit status says" }] : [];
  }
  if (/^agents (show|cordon|uncordon|drain|revoke)$/.test(path)) return at === 0 ? agentIds(invocation) : [];
  if (command.parent?.name() === "runs" && command.name() !== "list") {
    if (at === 0) return runIds(invocation);
    if (at === 1 && command.name() === "logs") return stepIds(invocation, given[0]!);
  }
  return [];
}

function names(invocation: Invocation, kindWord: string, prefix: string): Promise<Candidate[]> {
  if (/^runs?$/.test(kindWord)) return runIds(invocation, prefix);
  if (/^agents?$/.test(kindWord)) return agentIds(invocation, prefix);
  return fromServer(invocation, async (client, signal) => {
    const resources = await client.listResources(parseKind([kindWord]).kind as Kind, signal);
    return resources.map(({ name, kind }) => ({ word: `${prefix}${name}`, about: kind }));
  });
}

function runIds(invocation: Invocation, prefix = ""): Promise<Candidate[]> {
  return fromServer(invocation, async (client, signal) => {
    const runs = await client.listRuns({ limit: RUNS_MAX }, signal);
    const all = runs.map(({ id, pipeline, status }) => ({
      word: prefix + id,
      about: `${pipeline}, ${status}`,
    }));
    return [{ word: `${prefix}last`, about: "the newest run" }, ...all];
  });
}

function stepIds(invocation: Invocation, run: string): Promise<Candidate[]> {
  return fromServer(invocation, async (client, signal) => {
    const { steps } = await client.getRun(await client.resolveRunId(run, signal), signal);
    return steps.map(({ id, status }) => ({ word: id, about: status }));
  });
}

function agentIds(invocation: Invocation, prefix = ""): Promise<Candidate[]> {
  return fromServer(invocation, async (client, signal) =>
    (await client.listAgents(signal)).map(({ id, connected }) => ({
      word: prefix + id,
      about: connected ? "connected" : "away",
    })),
  );
}

async function fromServer(
  invocation: Invocation,
  ask: (client: Awaited<ReturnType<Invocation["client"]>>, signal: AbortSignal) => Promise<Candidate[]>,
): Promise<Candidate[]> {
  try {
    const signal = AbortSignal.any([invocation.signal, AbortSignal.timeout(SERVER_WAIT_MS)]);
    return await ask(await invocation.client(), signal);
  } catch {
    return []; // a message in the middle of somebody's command line helps nobody
  }
}
