/**
 * What a site's policy says of an offer, rule by rule. Pure.
 *
 * Each rule looks at what the agent would do with the offer, and at nothing that the offer says about itself where
 * that can be helped: the names of pipelines are the control plane's word unless they are signed, commands and datasets
 * are what is run and read.
 */
import { createHash } from "node:crypto";
import { digestOfImage } from "../../shared/model/image.ts";
import { CLASSIFICATIONS } from "../../shared/model/spec.ts";
import { parseTarget } from "../../shared/model/target.ts";
import { formatDuration, formatSize } from "../../shared/model/units.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import type { OfferOwners } from "../../shared/wire/offer-owners.ts";
import { describeTime, isOpen } from "./hours.ts";
import { matches, matchesAny } from "./pattern.ts";
import { ANY_ARGUMENTS, type SiteRules } from "./rules.ts";
import { type SignedOffer, signatureFaults } from "./signed-pipelines.ts";
import { matchesTarget } from "./target-rule.ts";

export const RULES = [
  "pipelines",
  "signedPipelines",
  "owners",
  "executors",
  "images",
  "commands",
  "files",
  "env",
  "datasets",
  "egress",
  "maximum",
  "hours",
] as const;
export type RuleName = (typeof RULES)[number];

export interface RuleVerdict {
  rule: RuleName | "cedar";
  allowed: boolean;
  /** For people, at the site and at the centre: names what the offer asks for, never what the file allows. */
  message: string;
}

/** What of an offer is looked at. */
export type Asked = SignedOffer &
  Pick<Offer, "datasets"> & {
    /** Undefined: the control plane does not say. */
    owners?: OfferOwners | undefined;
  };

/** As documents call them. */
const RESOURCES = ["memory", "cpu", "processes", "openFiles", "fileSize"] as const;
const SHOWN_CHARS = 200;

/** One verdict for each rule, in the order of `RULES`. `wallMs`: by the clock of the site. */
export function explainRules(rules: SiteRules, asked: Asked, wallMs: number): RuleVerdict[] {
  const look: Record<RuleName, () => string[]> = {
    pipelines: () => pipelineFaults(rules, asked),
    signedPipelines: () =>
      rules.signedPipelines === undefined ? [] : signatureFaults(rules.signedPipelines, asked, wallMs),
    owners: () => ownerFaults(rules, asked),
    executors: () => executorFaults(rules, asked),
    images: () => imageFaults(rules, asked),
    commands: () => commandFaults(rules, asked),
    files: () => fileFaults(rules, asked),
    env: () => envFaults(rules, asked),
    datasets: () => datasetFaults(rules, asked),
    egress: () => egressFaults(rules, asked),
    maximum: () => maximumFaults(rules, asked),
    hours: () => hoursFaults(rules, wallMs),
  };
  return RULES.map((rule) => {
    const faults = look[rule]();
    return { rule, allowed: faults.length === 0, message: faults.length === 0 ? "allowed" : shown(faults) };
  });
}

function pipelineFaults({ pipelines }: SiteRules, { pipeline }: Asked): string[] {
  return matchesAny(pipelines, pipeline) ? [] : [`pipeline ${pipeline} is not allowed here`];
}

function ownerFaults({ owners }: SiteRules, asked: Asked): string[] {
  if (owners === undefined) return [];
  if (asked.owners === undefined) return ["the control plane does not say who answers for the pipeline"];
  const owner = asked.owners.pipeline;
  if (owner === null) return ["the pipeline names no owner"];
  return matchesAny(owners, owner) ? [] : [`a pipeline of ${owner} is not allowed here`];
}

function executorFaults({ executors }: SiteRules, { step }: Asked): string[] {
  const { kind } = step.executor;
  return matchesAny(executors, kind) ? [] : [`executor ${kind} is not allowed here`];
}

/** Its name is the control plane's word; the digest is what is run. */
function imageFaults({ images }: SiteRules, { step: { executor } }: Asked): string[] {
  if (executor.kind !== "container") return [];
  const digest = digestOfImage(executor.image);
  return images.includes(digest) ? [] : [`image ${digest} is not allowed here`];
}

function commandFaults({ commands }: SiteRules, { step: { executor } }: Asked): string[] {
  if (executor.kind === "noop") return [];
  const argv = wordsOf(executor);
  // What an image runs by itself is allowed with its digest.
  if (executor.kind === "container" && argv.length === 0) return [];
  if (commands.some((command) => commandMatches(command, argv))) return [];
  return [`command ${JSON.stringify(argv.join(" "))} is not allowed here`];
}

/** What the step says itself is to be run. */
export function wordsOf(executor: Asked["step"]["executor"]): readonly string[] {
  if (executor.kind === "process") return executor.argv;
  return executor.kind === "container" ? [...(executor.command ?? []), ...(executor.args ?? [])] : [];
}

function commandMatches(command: readonly string[], argv: readonly string[]): boolean {
  const open = command.at(-1) === ANY_ARGUMENTS;
  const fixed = open ? command.slice(0, -1) : command;
  if (open ? argv.length < fixed.length : argv.length !== fixed.length) return false;
  return fixed.every((pattern, index) => matches(pattern, argv[index]!));
}

function fileFaults({ files }: SiteRules, asked: Asked): string[] {
  return Object.entries(asked.files).flatMap(([path, content]) => {
    const named = files.filter((rule) => matches(rule.path, path));
    if (named.length === 0) return [`file ${path} is not allowed here`];
    const digest = `sha256:${createHash("sha256").update(content).digest("hex")}`;
    if (named.some(({ sha256 }) => sha256 === undefined || sha256 === digest)) return [];
    return [`file ${path} has the content ${digest}, which is not allowed here`];
  });
}

function envFaults({ env }: SiteRules, { step }: Asked): string[] {
  return Object.keys(step.env)
    .filter((name) => !matchesAny(env, name))
    .map((name) => `environment variable ${name} is not allowed here`);
}

/** The first entry that names a dataset decides on it. */
function datasetFaults({ datasets }: SiteRules, asked: Asked): string[] {
  const { reads, writes } = asked.step;
  return [...new Set([...reads, ...writes])].flatMap((name) => {
    const rule = datasets.find((entry) => matches(entry.name, name));
    if (rule === undefined) return [`dataset ${name} is not allowed here`];
    if (writes.includes(name) && rule.access !== "read-write")
      return [`dataset ${name} may not be written here`];
    const owner = Object.hasOwn(asked.owners?.datasets ?? {}, name)
      ? asked.owners?.datasets[name]
      : undefined;
    if (rule.owner !== undefined && (owner === undefined || !matches(rule.owner, owner)))
      return [
        owner === undefined
          ? `the control plane does not say who answers for dataset ${name}`
          : `dataset ${name} is said to be of ${owner}, and this site knows it as somebody else's`,
      ];
    const floor = CLASSIFICATIONS.indexOf(rule.classification);
    // One that the offer says nothing about is treated as the most secret one.
    const low = asked.datasets.find(
      (stated) => stated.name === name && CLASSIFICATIONS.indexOf(stated.classification) < floor,
    );
    if (low === undefined) return [];
    return [`dataset ${name} is called ${low.classification}, and this site knows it as more than that`];
  });
}

function egressFaults({ egress }: SiteRules, { step }: Asked): string[] {
  const targets = step.network?.allow ?? [];
  return targets
    .filter((text) => {
      const target = parseTarget(text);
      return target === undefined || !egress.some((rule) => matchesTarget(rule, target));
    })
    .map((target) => `to be let out to ${target} is not allowed here`);
}

function maximumFaults({ maximum }: SiteRules, { step }: Asked): string[] {
  const sum = (parts: Record<string, { maxBytes: number }>): number =>
    Object.values(parts).reduce((total, { maxBytes }) => total + maxBytes, 0);
  const faults: string[] = [];
  const { timeout, outputBytes, artifactBytes } = maximum;
  if (timeout !== undefined && step.timeoutMs > timeout)
    faults.push(`a timeout of ${formatDuration(step.timeoutMs)} is more than is allowed here`);
  if (outputBytes !== undefined && sum(step.outputs) > outputBytes)
    faults.push(`outputs of up to ${formatSize(sum(step.outputs))} are more than is allowed here`);
  if (artifactBytes !== undefined && sum(step.artifacts) > artifactBytes)
    faults.push(`artifacts of up to ${formatSize(sum(step.artifacts))} are more than is allowed here`);
  return [...faults, ...resourceFaults(maximum, step)];
}

/**
 * A step that says nothing would get what the agent's configuration gives, which this file does not know: so it has to
 * say.
 */
function resourceFaults(
  maximum: SiteRules["maximum"],
  { executor, resources = {} }: Offer["step"],
): string[] {
  if (executor.kind === "noop") return [];
  const { memoryBytes, fileSizeBytes, cpus, processes, openFiles } = resources;
  const asked = { memory: memoryBytes, cpu: cpus, processes, openFiles, fileSize: fileSizeBytes };
  return RESOURCES.flatMap((name) => {
    const [most, wanted] = [maximum[name], asked[name]];
    if (most === undefined) return [];
    if (wanted === undefined) return [`the step has to say in its resources how much ${name} it takes`];
    if (wanted <= most) return [];
    const shown = name === "memory" || name === "fileSize" ? formatSize(wanted) : String(wanted);
    return [`${name} ${shown} is more than is allowed here`];
  });
}

function hoursFaults({ hours }: SiteRules, wallMs: number): string[] {
  if (hours === undefined || isOpen(hours, wallMs)) return [];
  return [`outside the hours of this site: ${describeTime(hours, wallMs)}`];
}

/** Bounded: an offer may name thousands of things. */
function shown(faults: readonly string[]): string {
  const [first = "", ...rest] = faults;
  const text = first.length > SHOWN_CHARS ? `${first.slice(0, SHOWN_CHARS)}…` : first;
  return rest.length === 0 ? text : `${text} (and ${rest.length} more)`;
}
