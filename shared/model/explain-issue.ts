/** Zod's issues in the words of the person who wrote the document. */
import type { z } from "zod";
import type { DocumentPath } from "./document-errors.ts";
import { pathText } from "./document-errors.ts";
import { JURISDICTION_GROUPS } from "./jurisdictions.ts";
import { NAME_PATTERN } from "./names.ts";
import { didYouMean } from "./nearest.ts";

type Issue = z.core.$ZodIssue;

export interface Explained {
  path: DocumentPath;
  /** Whether the fault is in the key or in what stands behind it. */
  on: "key" | "value";
  message: string;
  expected?: string;
  hint?: string;
  code: string;
}

/** One for each thing that is wrong. `keysAt` gives the keys that are allowed in the mapping at a path. */
export function explainIssue(
  issue: Issue,
  document: unknown,
  keysAt: (path: DocumentPath) => readonly string[],
  base: DocumentPath = [],
): Explained[] {
  const path: DocumentPath = [
    ...base,
    ...issue.path.map((part) => (typeof part === "symbol" ? String(part) : part)),
  ];
  switch (issue.code) {
    case "unrecognized_keys":
      return issue.keys.map((key) => unknownKey([...path, key], key, keysAt(path)));
    case "invalid_union": {
      const branch = meantBranch(issue.errors, valueAt(document, path));
      if (branch) return branch.flatMap((inner) => explainIssue(inner, document, keysAt, path));
      break;
    }
    case "invalid_key": {
      const expected = issue.issues[0]?.message ?? "another name";
      const key = String(path.at(-1));
      return [
        {
          path,
          on: "key",
          message: `the name ${quoted(key)} must be ${expected}`,
          expected,
          code: "key.invalid",
        },
      ];
    }
  }
  return [wrongValue(issue, path, valueAt(document, path))];
}

function wrongValue(issue: Issue, path: DocumentPath, found: unknown): Explained {
  const expected = expectedBy(issue);
  const where = path.length === 0 ? "the document" : pathText(path);
  if (found === undefined) {
    const message = `${where} is missing; it must be ${expected}`;
    return { path, on: "value", message, expected, code: "value.missing" };
  }
  const message = `${where} is ${describe(found)}; it must be ${expected}`;
  return { path, on: "value", message, expected, code: "value.invalid", ...hintFor(issue, found, expected) };
}

function expectedBy(issue: Issue): string {
  if (issue.code === "invalid_type") {
    if (issue.expected === "object" || issue.expected === "record") return "a mapping of keys to values";
    if (issue.expected === "array" && issue.message.startsWith("Invalid input")) return "a list";
    if (issue.expected === "number" && issue.message.startsWith("Invalid input")) return "a number";
  }
  return issue.message;
}

function hintFor(issue: Issue, found: unknown, expected: string): { hint?: string } {
  if ((typeof found === "number" || typeof found === "boolean") && expected.startsWith("text")) {
    return { hint: `write it in quotes: "${found}"` };
  }
  if (typeof found === "number" && expected.startsWith("a duration"))
    return { hint: `add a unit: ${found}s` };
  if (typeof found !== "string") return {};
  if (issue.code === "invalid_value") {
    const values = issue.values.map(String);
    const isCountry = values.includes("DE");
    if (isCountry) return countryHint(found, values);
    return didYouMean(found, values);
  }
  if (issue.code === "invalid_format" && expected.startsWith("a name of lower-case")) {
    const better = found
      .trim()
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, "-")
      .replace(/^-|-$/g, "");
    if (NAME_PATTERN.test(better)) return { hint: `did you mean '${better}'?` };
  }
  if (expected.startsWith("a duration") && /^\d+$/.test(found)) return { hint: `add a unit: ${found}s` };
  return {};
}

/** Of 249 codes with two letters, every typing error is near to dozens; only what people really mix up is told. */
function countryHint(found: string, values: readonly string[]): { hint?: string } {
  const upper = found.trim().toUpperCase();
  const known: Record<string, string> = { UK: "GB", EL: "GR" };
  const better = Object.hasOwn(known, upper) ? known[upper] : upper;
  if (better !== undefined && better !== found && values.includes(better)) {
    return { hint: `did you mean '${better}'?` };
  }
  if (JURISDICTION_GROUPS.has(upper)) {
    return { hint: `${upper} is a group of countries; an environment lies in one country` };
  }
  return {};
}

function unknownKey(path: DocumentPath, key: string, known: readonly string[]): Explained {
  const inside = path.length > 1 ? ` in ${pathText(path.slice(0, -1))}` : "";
  const message = `unknown key ${quoted(key)}${inside}`;
  const expected = known.length > 0 ? `one of ${known.join(", ")}` : undefined;
  const hint =
    key === "<<" ? { hint: "merge keys are not supported; write the keys out" } : keyHint(key, known);
  return { path, on: "key", message, ...(expected ? { expected } : {}), ...hint, code: "key.unknown" };
}

/** What people who come from other systems type. */
const OTHER_WORDS: ReadonlyMap<string, string> = new Map(
  Object.entries({
    run: ["command", "cmd", "script", "args"],
    needs: ["depends_on", "dependsOn", "dependencies", "depends"],
    environment: ["runs-on", "runs_on", "environments"],
    pools: ["pool"],
    retries: ["retry"],
    env: ["variables"],
    reads: ["inputs"],
    params: ["parameters"],
    steps: ["jobs", "tasks"],
    id: ["name"],
    jurisdiction: ["country"],
    capacity: ["size", "slots"],
  }).flatMap(([ours, others]) => others.map((other) => [other, ours] as const)),
);

function keyHint(key: string, known: readonly string[]): { hint?: string } {
  const other = OTHER_WORDS.get(key);
  if (other !== undefined && known.includes(other)) return { hint: `did you mean '${other}'?` };
  return didYouMean(key, known);
}

/** The alternative that was meant: the only one that got further than the kind of its value. */
function meantBranch(branches: readonly (readonly Issue[])[], found: unknown): readonly Issue[] | undefined {
  const further = branches.filter(
    (issues) =>
      !issues.some(
        ({ code, path }) =>
          path.length === 0 &&
          (code === "invalid_type" || (code === "invalid_value" && typeof found !== "string")),
      ),
  );
  return further.length === 1 ? further[0] : undefined;
}

export function valueAt(document: unknown, path: DocumentPath): unknown {
  let value = document;
  for (const part of path) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, part)) return undefined;
    value = (value as Record<string | number, unknown>)[part];
  }
  return value;
}

const SHOWN_MAX = 60;

function describe(value: unknown): string {
  if (value === null) return "empty";
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list";
  if (typeof value === "object") return "a mapping";
  return typeof value === "string" ? quoted(value) : String(value);
}

function quoted(text: string): string {
  return `'${text.length > SHOWN_MAX ? `${text.slice(0, SHOWN_MAX)}…` : text}'`;
}
