/** `insitu get`, `describe` and `delete`. */
import { InsituError } from "../../../shared/errors.ts";
import type {
  AccessPolicySpec,
  DatasetSpec,
  EnvironmentSpec,
  Kind,
  PipelineSpec,
  PoolSpec,
  StepSpec,
} from "../../../shared/model/spec.ts";
import { readStatement } from "../../../shared/provenance/signed-pipeline.ts";
import type { StoredResource } from "../../api/services.ts";
import type { ResourceDetail } from "../client.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { parseKind, parseResource } from "../kinds.ts";
import { type Column, fieldLines } from "../output.ts";
import { duration, instant, oneLine, shortDigest } from "../text.ts";
import * as agents from "./agents.ts";
import { changeLine } from "./documents.ts";
import * as runs from "./runs.ts";

export async function get(invocation: Invocation, args: string[]): Promise<number> {
  const { kind, name } = parseKind(args);
  if (kind === "run") {
    return name ? runs.show(invocation, [name]) : runs.list(invocation, [], { limit: "20" });
  }
  if (kind === "agent") return name ? agents.show(invocation, [name]) : agents.list(invocation, [], {});
  const client = await invocation.client();
  const { output, signal } = invocation;
  if (name) {
    const resource = await client.getResource(kind, name, signal);
    if (output.people) await output.table<StoredResource>([resource], COLUMNS[kind]);
    else await output.data(resource);
    return EXIT.ok;
  }
  const resources = await client.listResources(kind, signal);
  if (!output.people) await output.data(resources);
  else if (resources.length > 0) await output.table(resources, COLUMNS[kind]);
  else await output.note(`There is no ${kind} yet. \`insitu apply -f FILE\` creates one.`);
  return EXIT.ok;
}

export async function remove(invocation: Invocation, args: string[]): Promise<number> {
  const { kind, name } = parseResource(args);
  const client = await invocation.client();
  const change = await client.deleteResource(kind, name, invocation.signal);
  const { output } = invocation;
  if (output.people) await output.line(changeLine(invocation, change, false));
  else await output.data(change);
  return EXIT.ok;
}

export async function describe(invocation: Invocation, args: string[]): Promise<number> {
  const { kind, name } = parseKind(args);
  if (!name) throw new InsituError("request.invalid", `which ${kind}? Name it: insitu describe ${kind} NAME`);
  if (kind === "run") return runs.show(invocation, [name]);
  if (kind === "agent") return agents.show(invocation, [name]);
  const client = await invocation.client();
  const resource = await client.getResource(kind, name, invocation.signal);
  const { output } = invocation;
  if (!output.people) await output.data(resource);
  else for (const line of fieldLines(fieldsOf(kind, resource), output.paint)) await output.line(line);
  return EXIT.ok;
}

type Columns = readonly Column<StoredResource>[];
const NAME: Column<StoredResource> = { title: "NAME", value: ({ name }) => name };
const APPLIED: Column<StoredResource> = {
  title: "APPLIED",
  value: ({ appliedAtMs, appliedBy }) => `${instant(appliedAtMs)} by ${appliedBy}`,
};

const COLUMNS: Record<Kind, Columns> = {
  pipeline: [
    NAME,
    { title: "STEPS", value: ({ spec }) => String((spec as PipelineSpec).steps.length), right: true },
    { title: "VERSION", value: ({ version }) => shortDigest(version ?? "-") },
    APPLIED,
    { title: "DESCRIPTION", value: ({ spec }) => spec.description ?? "" },
  ],
  dataset: [
    NAME,
    { title: "CLASS", value: ({ spec }) => (spec as DatasetSpec).classification },
    { title: "RESIDENCY", value: ({ spec }) => (spec as DatasetSpec).residency.join(", ") },
    { title: "HELD BY", value: ({ spec }) => (spec as DatasetSpec).environments.join(", ") },
    { title: "OWNER", value: ({ spec }) => spec.owner ?? "" },
  ],
  environment: [
    NAME,
    { title: "JURISDICTION", value: ({ spec }) => (spec as EnvironmentSpec).jurisdiction },
    { title: "OWNER", value: ({ spec }) => spec.owner ?? "" },
    { title: "DESCRIPTION", value: ({ spec }) => spec.description ?? "" },
  ],
  pool: [
    NAME,
    { title: "CAPACITY", value: ({ spec }) => String((spec as PoolSpec).capacity), right: true },
    { title: "OWNER", value: ({ spec }) => spec.owner ?? "" },
    { title: "DESCRIPTION", value: ({ spec }) => spec.description ?? "" },
  ],
  "access-policy": [
    NAME,
    { title: "RULES", value: ({ spec }) => Object.keys((spec as AccessPolicySpec).rules).join(", ") },
    { title: "VERSION", value: ({ version }) => shortDigest(version ?? "-") },
    APPLIED,
  ],
};

function fieldsOf(kind: Kind, resource: ResourceDetail): [string, string][] {
  const { spec } = resource;
  const head: [string, string][] = [[kind, resource.name]];
  if (spec.description) head.push(["description", oneLine(spec.description)]);
  if (spec.owner) head.push(["owner", oneLine(spec.owner)]);
  const tail: [string, string][] = [
    ["applied", `${instant(resource.appliedAtMs)} by ${oneLine(resource.appliedBy)}`],
  ];
  switch (kind) {
    case "pipeline":
      return [...head, ...pipelineFields(resource, spec as PipelineSpec), ...tail];
    case "dataset": {
      const { classification, residency, environments } = spec as DatasetSpec;
      const own: [string, string][] = [
        ["class", classification],
        ["residency", residency.join(", ")],
        ["held by", environments.join(", ") || "-"],
      ];
      return [...head, ...own, ...tail];
    }
    case "environment": {
      const { jurisdiction, labels } = spec as EnvironmentSpec;
      const shown = Object.entries(labels).map(([key, value]) => oneLine(`${key}=${value}`));
      return [...head, ["jurisdiction", jurisdiction], ["labels", shown.join(", ") || "-"], ...tail];
    }
    case "pool":
      return [...head, ["capacity", String((spec as PoolSpec).capacity)], ...tail];
    case "access-policy": {
      const rules = Object.entries((spec as AccessPolicySpec).rules);
      const shown = rules.map(([name, text]): [string, string] => [
        `rule ${name}`,
        text.trim().split("\n").map(oneLine).join("\n"),
      ]);
      return [...head, ["version", resource.version ?? "-"], ...shown, ...tail];
    }
  }
}

function pipelineFields(resource: ResourceDetail, spec: PipelineSpec): [string, string][] {
  const params = Object.entries(spec.params).map(([name, { type, default: fallback, description }]) =>
    oneLine(
      `${name}: ${type}${fallback === undefined ? ", must be given" : `, default ${fallback}`}${description ? ` (${description})` : ""}`,
    ),
  );
  const signers = (resource.signatures ?? []).flatMap((envelope) => {
    const statement = readStatement(envelope);
    const until = statement?.expiresAtMs === undefined ? "" : `, until ${instant(statement.expiresAtMs)}`;
    const at = statement === undefined ? "" : `, ${instant(statement.signedAtMs)}`;
    // The server trusts no keys, and who reads this may trust no server.
    return envelope.signatures.map(({ keyid = "-" }) => oneLine(`by ${keyid}${at}${until}; sites check it`));
  });
  const versions = (resource.versions ?? []).map(
    ({ version, appliedAtMs, appliedBy }) => `${version}  ${instant(appliedAtMs)} by ${oneLine(appliedBy)}`,
  );
  return [
    ["version", resource.version ?? "-"],
    ["params", params.join("\n") || "-"],
    ["deadline", spec.timeoutMs === null ? "none" : duration(spec.timeoutMs)],
    ["files", Object.keys(spec.files).map(oneLine).join(", ") || "-"],
    ["steps", spec.steps.map(stepText).join("\n")],
    ["signed", signers.join("\n") || "no"],
    ["versions", versions.join("\n") || "-"],
  ];
}

function stepText(step: StepSpec): string {
  const parts = [step.id];
  if (step.needs.length > 0) parts.push(`after ${step.needs.join(", ")}`);
  if (step.reads.length > 0) parts.push(`reads ${step.reads.join(", ")}`);
  if (step.writes.length > 0) parts.push(`writes ${step.writes.join(", ")}`);
  if (step.environments.length > 0) parts.push(`only at ${step.environments.join(", ")}`);
  const outputs = Object.keys(step.outputs);
  if (outputs.length > 0) parts.push(`gives ${outputs.join(", ")}`);
  const artifacts = Object.keys(step.artifacts);
  if (artifacts.length > 0) parts.push(`keeps ${artifacts.join(", ")}`);
  return parts.join("; ");
}
