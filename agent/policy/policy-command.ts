/** `insitu-agent policy …`: for the team of a site, before and while its policy is in force. */
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { InsituError } from "../../shared/errors.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import type { LocatedResource } from "../../shared/model/load-documents.ts";
import { loadDocuments } from "../../shared/model/load-documents.ts";
import type { ParamSpec, ParamValue, PipelineSpec, StepSpec } from "../../shared/model/spec.ts";
import { pipelineTree } from "../../shared/provenance/signed-pipeline.ts";
import { Offer } from "../../shared/wire/attempt.ts";
import type { Asked } from "./allow-lists.ts";
import type { CedarPolicies } from "./cedar-question.ts";
import { signPolicy, verifyPolicy } from "./seal-command.ts";
import { explainPolicy, loadPolicy } from "./site-policy.ts";
import { TEMPLATE } from "./template.ts";

const HELP = `insitu-agent policy — what this site allows, whatever the control plane asks for

Usage
  insitu-agent policy init [FILE]                      a commented template that allows nothing; to standard output without FILE
  insitu-agent policy check --site-policy FILE         whether the file can be used
  insitu-agent policy check --site-policy FILE OFFER   what it makes of an offer, rule by rule; OFFER is a JSON file, or - for standard input
  insitu-agent policy check --site-policy FILE --pipeline FILE --step STEP
                                                       what it makes of a step that is not offered yet
  insitu-agent policy sign --site-policy FILE --key KEY --environment ENV [--serial N]
                                                       writes FILE.sig, for agents with sitePolicyKey; not on their hosts
  insitu-agent policy verify --site-policy FILE --site-policy-key KEY --environment ENV
                                                       whether such an agent would take it

Flags
  --site-policy FILE     the policy, as in the agent's configuration (sitePolicy)
  --pipeline FILE        documents: a pipeline and, if they are at hand, its datasets; may be repeated
  --step STEP            id of the step; pipeline/step when the documents hold several pipelines
  --key KEY              private key of the site's team (Ed25519, PEM); - for standard input
  --site-policy-key KEY  public keys of the site's team, as in the agent's configuration (sitePolicyKey)
  --environment ENV      the environment that it is signed for: an agent of another one refuses it
  --serial N             larger than that of every version before; default: one more than FILE.sig has

Examples
  insitu-agent policy init /etc/insitu/policy.yaml
  insitu-agent policy check --site-policy /etc/insitu/policy.yaml
  insitu-agent policy check --site-policy /etc/insitu/policy.yaml --pipeline pipeline.yaml --step statistics-dream
  insitu-agent policy check --site-policy /etc/insitu/policy.yaml offer.json
  openssl genpkey -algorithm ed25519 -out team.key
  openssl pkey -in team.key -pubout -out team.pub      # this one goes to the agent's host
  insitu-agent policy sign --site-policy policy.yaml --key team.key --environment hq
  insitu-agent policy verify --site-policy policy.yaml --site-policy-key team.pub --environment hq

Run it as the agent's user: whose the file is matters. The hours are looked at as of now.
Exit codes: 0 allowed · 1 failed · 2 bad policy, signature, offer or documents · 5 refused
`;

const REFUSED = 5;

export interface PolicyWorld {
  write(text: string): void;
  nowMs(): number;
  uid: number;
}

/** @throws request.invalid */
export async function policyCommand(argv: string[], world: PolicyWorld): Promise<number> {
  const { values, positionals } = parse(argv);
  const [command, ...rest] = positionals;
  if (values.help || command === undefined || command === "help") {
    world.write(HELP);
    return command === undefined && !values.help ? 2 : 0;
  }
  if (command === "sign" || command === "verify") return await seal(command, rest, values, world);
  if (rest.length > 1) throw invalid(`"${rest[1]}" is one argument too many`);
  if (command === "init") return init(rest[0], world);
  if (command === "check") return await check(rest[0], values, world);
  throw invalid(`there is no command "policy ${command}"; it is init, check, sign or verify`);
}

function init(file: string | undefined, { write }: PolicyWorld): number {
  if (file === undefined) {
    write(TEMPLATE);
    return 0;
  }
  try {
    // Never over a file that is there.
    writeFileSync(file, TEMPLATE, { flag: "wx", mode: 0o644 });
  } catch (err) {
    throw invalid(`${file} cannot be written: ${InsituError.from(err).message}`);
  }
  write(
    `${file} allows nothing yet: say in it what this site allows, then give it to the agent as sitePolicy\n`,
  );
  return 0;
}

async function check(
  offerFile: string | undefined,
  values: ReturnType<typeof parse>["values"],
  { write, nowMs, uid }: PolicyWorld,
): Promise<number> {
  const path = values["site-policy"];
  if (path === undefined) throw invalid("say which policy: --site-policy FILE");
  const { pipeline: files = [], step } = values;
  if (offerFile !== undefined && (files.length > 0 || step !== undefined))
    throw invalid("give an offer, or --pipeline and --step, and not both");
  if (files.length > 0 !== (step !== undefined)) throw invalid("--pipeline and --step go together");
  const policy = await loadPolicy(path, { uid, openCedar });
  write(`policy          ${printable(path)}\n                ${policy.digest}\n`);
  if (offerFile === undefined && step === undefined) {
    write("It can be used.\n");
    return 0;
  }
  const asked = offerFile === undefined ? askedBy(files, step ?? "") : readOffer(offerFile);
  write(`step            ${printable(asked.step.id)} of pipeline ${printable(asked.pipeline)}\n`);
  const verdicts = await explainPolicy(policy, asked, nowMs());
  for (const { rule, allowed, message } of verdicts)
    write(`${rule.padEnd(16)}${allowed ? "allowed" : `refused: ${printable(message)}`}\n`);
  const refused = verdicts.filter(({ allowed }) => !allowed);
  if (refused.length === 0) {
    write("The site allows it.\n");
    return 0;
  }
  // Outside the hours nothing is refused to the run: it waits.
  const waits = refused.every(({ rule }) => rule === "hours");
  write(waits ? "The site allows it, and takes no work now.\n" : "The site refuses it.\n");
  return REFUSED;
}

async function seal(
  command: "sign" | "verify",
  rest: readonly string[],
  values: ReturnType<typeof parse>["values"],
  { write, uid }: PolicyWorld,
): Promise<number> {
  if (rest.length > 0) throw invalid(`"${rest[0]}" is one argument too many`);
  const needed = (flag: "site-policy" | "environment" | "key" | "site-policy-key"): string => {
    const value = values[flag];
    if (value === undefined) throw invalid(`policy ${command} needs --${flag}`);
    return value;
  };
  const options = {
    path: needed("site-policy"),
    environment: needed("environment"),
    uid,
    openCedar,
    readText,
  };
  const lines =
    command === "sign"
      ? await signPolicy(options, { keyFile: needed("key"), serial: values.serial })
      : await verifyPolicy(options, needed("site-policy-key"));
  for (const line of lines) write(`${printable(line)}\n`);
  return 0;
}

/** Here, and not in another process: the command ends with its answer. */
async function openCedar(file: string, text: string): Promise<CedarPolicies> {
  const { parseCedar } = await import("./cedar-policies.ts");
  const parsed = parseCedar(file, text);
  return { answer: (question) => Promise.resolve(parsed.answer(question)), close: () => undefined };
}

function readOffer(file: string): Asked {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file === "-" ? 0 : file, "utf8"));
  } catch (err) {
    throw invalid(`the offer ${file} cannot be read: ${InsituError.from(err).message}`);
  }
  const parsed = Offer.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw invalid(`${file} is no offer: field ${issue?.path.join(".") || "(top)"}: ${issue?.message}`);
}

/** What the control plane would offer for the step. Datasets whose documents are missing are called nothing. */
function askedBy(paths: readonly string[], named: string): Asked {
  const loaded = loadDocuments({
    files: paths.map((file) => ({ file, text: readText(file) })),
    readAttachment,
  });
  const [error] = loaded.errors;
  if (error !== undefined) throw invalid(`${error.file}:${error.line}:${error.column}: ${error.message}`);
  const [stepId = "", pipelineName] = named.split("/").reverse();
  const found = loaded.resources.flatMap((resource) => {
    if (resource.kind !== "pipeline") return [];
    if (pipelineName !== undefined && resource.spec.name !== pipelineName) return [];
    const step = resource.spec.steps.find(({ id }) => id === stepId);
    return step === undefined ? [] : [{ resource, pipeline: resource.spec, step }];
  });
  const [one, second] = found;
  if (one === undefined) throw invalid(`${paths.join(", ")}: there is no step ${named}`);
  if (second !== undefined)
    throw invalid(`several pipelines have a step ${named}: say --step ${one.pipeline.name}/${stepId}`);
  const names = new Set([...one.step.reads, ...one.step.writes]);
  const datasets = loaded.resources.flatMap((resource) =>
    resource.kind === "dataset" && names.has(resource.spec.name) ? [resource.spec] : [],
  );
  return {
    ...offeredFor(one.pipeline, one.step),
    ...signedFor(one.resource, one.step),
    datasets: datasets.map(({ name, classification }) => ({ name, classification })),
    owners: {
      pipeline: one.pipeline.owner ?? null,
      datasets: Object.fromEntries(datasets.map(({ name, owner }) => [name, owner])),
    },
  };
}

/** What a run adds is not known yet: values that the pipeline allows, and no input. */
function offeredFor(pipeline: PipelineSpec, step: StepSpec): Omit<Asked, "datasets" | "signed"> {
  const params = Object.entries(pipeline.params).map(([name, spec]) => [name, sampleOf(spec)] as const);
  return {
    lease: { runId: "check", stepId: step.id, attempt: 1, epoch: 1 },
    environment: step.environments[0] ?? "site",
    pipeline: pipeline.name,
    version: digestOf(pipeline),
    step,
    files: Object.fromEntries(step.files.map((path) => [path, pipeline.files[path] ?? ""])),
    params: Object.fromEntries(params),
    inputs: {},
    traceparent: `00-${"0".repeat(31)}1-${"0".repeat(15)}1-01`,
  };
}

function sampleOf({ type, default: fallback, enum: values }: ParamSpec): ParamValue {
  return fallback ?? values?.[0] ?? { string: "", number: 0, boolean: false }[type];
}

function signedFor(
  { document, spec }: LocatedResource & { kind: "pipeline" },
  step: StepSpec,
): Pick<Asked, "signed"> {
  const envelopes = document.kind === "pipeline" ? document.signatures : undefined;
  const proven = envelopes === undefined ? undefined : pipelineTree(spec).provenStep(step.id);
  return envelopes === undefined || proven === undefined ? {} : { signed: { envelopes, ...proven } };
}

function readText(file: string): string {
  try {
    return readFileSync(file === "-" ? 0 : file, "utf8");
  } catch (err) {
    throw invalid(`${file} cannot be read: ${InsituError.from(err).message}`);
  }
}

function readAttachment(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined; // which is an error of the document that names it
  }
}

function parse(argv: string[]) {
  try {
    return parseArgs({
      args: argv,
      options: {
        "site-policy": { type: "string" },
        pipeline: { type: "string", multiple: true },
        step: { type: "string" },
        key: { type: "string" },
        "site-policy-key": { type: "string" },
        environment: { type: "string" },
        serial: { type: "string" },
        help: { type: "boolean", short: "h" },
      },
      allowPositionals: true,
    });
  } catch (err) {
    throw invalid(InsituError.from(err).message, err);
  }
}

/** An offer is somebody else's text: it moves no cursor and starts no line of its own. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\uFFFD");
}

function invalid(message: string, cause?: unknown): InsituError {
  return new InsituError("request.invalid", `${message} (see insitu-agent policy --help)`, { cause });
}
