/**
 * Reads sources and finds what breaks the rules of STYLE: which way imports point, where time and chance come
 * in, who reads the process's environment, the glossary's words, the length of files.
 *
 * A rule is a function of one parsed file, so each can be tried on a sample in memory.
 */
import { posix } from "node:path";
import { parseSync } from "oxc-parser";

export interface SourceFile {
  /** From the root of the repository, with `/`. */
  path: string;
  text: string;
}

export interface Violation {
  path: string;
  line: number;
  rule: string;
  message: string;
}

/** Any node of the syntax tree, as much as the rules need of it. */
interface Node {
  type: string;
  start: number;
  [key: string]: unknown;
}

interface ImportEdge {
  /** A path from the root when it was relative, else the package or built-in as written. */
  target: string;
  /** True when nothing of it is left at run time. */
  typeOnly: boolean;
  at: number;
}

interface Parsed extends SourceFile {
  imports: ImportEdge[];
  nodes: { node: Node; parent: Node | null }[];
}

interface Finding {
  at: number;
  message: string;
}

/** `file:line  rule: message`, one a line. */
export function describeViolations(violations: readonly Violation[]): string {
  return violations.map(({ path, line, rule, message }) => `${path}:${line}  ${rule}: ${message}`).join("\n");
}

export function findViolations(files: readonly SourceFile[]): Violation[] {
  return files.flatMap((file) => {
    const parsed = parse(file);
    return Object.entries(RULES).flatMap(([rule, check]) =>
      check(parsed).map(({ at, message }) => ({
        path: file.path,
        line: lineAt(file.text, at),
        rule,
        message,
      })),
    );
  });
}

const RULES: Record<string, (file: Parsed) => Finding[]> = {
  sides: importsAcrossSides,
  deciding: importsOfDecidingCode,
  "shared without I/O": importsOfShared,
  "time and chance": timeAndChance,
  environment: readsOfTheEnvironment,
  glossary: wordsOutsideTheGlossary,
  names: namesThatSayNothing,
  length: filesTooLong,
  brotli: decodesBrotli,
};

const DECIDING =
  /^(shared\/(engine|model)|control-plane\/(placement|leases|runs|resources|schedules|evidence)|agent\/(leases|egress))\//;
/** What acts on the outside, and so may not be imported by what decides. */
const ACTING =
  /^(control-plane\/(store|gateway|api|cli|access|fleet)|agent\/(journal|uplink|executors|enrolment))\//;
/** Built-ins that compute and touch nothing. */
const PURE_BUILT_INS = new Set([
  "node:crypto",
  "node:buffer",
  "node:events",
  "node:util",
  "node:assert",
  "node:path",
  "node:zlib",
]);
/** Packages that open neither a socket nor a file when they are called. */
const PURE_PACKAGES = new Set(["zod", "yaml", "@cedar-policy/cedar-wasm", "@hono/zod-openapi", "protobufjs"]);
/** Describes the gRPC service from a descriptor in memory; the sides open the sockets. */
const SHARED_EXCEPTIONS = new Map([
  ["shared/wire/grpc.ts", new Set(["@grpc/grpc-js", "@grpc/proto-loader"])],
  // Amends a class of the client; the sides open the connections.
  ["shared/wire/nats-transport.ts", new Set(["nats"])],
]);
const SYSTEM = "shared/system.ts";
const LINES_MAX = 600;

function isTest(path: string): boolean {
  return /\.(test|fixture)\.ts$/.test(path) || path.startsWith("test/");
}

function isService(path: string): boolean {
  return /-service\.ts$/.test(path);
}

function importsAcrossSides({ path, imports }: Parsed): Finding[] {
  const side = path.split("/")[0];
  const forbidden: Record<string, RegExp> = {
    shared: /^(control-plane|agent)\//,
    "control-plane": /^agent\//,
    agent: /^control-plane\//,
  };
  const pattern = forbidden[side ?? ""];
  if (pattern === undefined) return [];
  return imports
    .filter(({ target }) => pattern.test(target))
    .filter(({ target }) => !(isTest(path) && target.startsWith("test/")))
    .map(({ target, at }) => ({ at, message: `${side} imports ${target}; it may import itself and shared` }));
}

function importsOfDecidingCode({ path, imports }: Parsed): Finding[] {
  if (!DECIDING.test(path) || isTest(path)) return [];
  return imports
    .filter(({ target, typeOnly }) => {
      if (typeOnly) return isPackage(target) && !isService(path) && !isPure(target);
      if (isService(path)) return isPackage(target) && !isPure(target);
      return ACTING.test(target) || isService(target) || (isPackage(target) && !isPure(target));
    })
    .map(({ target, at }) => ({
      at,
      message: `code that decides imports ${target}; it may import shared, other decisions and libraries without I/O`,
    }));
}

function importsOfShared({ path, imports }: Parsed): Finding[] {
  if (!path.startsWith("shared/") || isTest(path)) return [];
  return imports
    .filter(({ target }) => isPackage(target) && !isPure(target))
    .filter(({ target }) => !SHARED_EXCEPTIONS.get(path)?.has(packageOf(target)))
    .map(({ target, at }) => ({ at, message: `shared imports ${target}; it holds no sockets and no files` }));
}

const TIMERS = new Set(["setTimeout", "setInterval"]);

function timeAndChance({ path, imports, nodes }: Parsed): Finding[] {
  if (path === SYSTEM) return [];
  const message = (what: string) =>
    `${what} belongs to ${SYSTEM}; take a Clock, a Random or an id as a parameter`;
  const found: Finding[] = imports
    .filter(({ target }) => /^(node:)?timers(\/|$)/.test(target))
    .map(({ target, at }) => ({ at, message: message(target) }));
  for (const { node, parent } of nodes) {
    const member = memberName(node);
    if (member !== null && ["Date.now", "Math.random", "performance.now"].includes(member)) {
      found.push({ at: node.start, message: message(member) });
    } else if (member === "AbortSignal.timeout" && DECIDING.test(path)) {
      found.push({ at: node.start, message: message(member) });
    } else if (node.type === "Identifier" && node.name === "randomUUID") {
      found.push({ at: node.start, message: message("randomUUID") });
    } else if (isReference(node, parent) && TIMERS.has(String(node.name))) {
      found.push({ at: node.start, message: message(String(node.name)) });
    } else if (isDateOfNow(node)) {
      found.push({ at: node.start, message: message("the time of now, as a Date,") });
    }
  }
  return found;
}

function readsOfTheEnvironment({ path, nodes }: Parsed): Finding[] {
  if (/(^|\/)(main|config)\.ts$/.test(path) || isTest(path) || path.endsWith(".config.ts")) return [];
  return nodes
    .filter(({ node }) => memberName(node) === "process.env" || isEnvTakenApart(node))
    .map(({ node }) => ({ at: node.start, message: "process.env is read by main.ts and config.ts alone" }));
}

function wordsOutsideTheGlossary({ nodes }: Parsed): Finding[] {
  return nodes
    .filter(({ node }) => node.type === "Identifier" || node.type === "PrivateIdentifier")
    .filter(({ node }) =>
      /^(job|task)s?$/.test(wordsOf(String(node.name)).find((word) => /^(job|task)s?$/.test(word)) ?? ""),
    )
    .map(({ node }) => ({ at: node.start, message: `"${node.name}": the words are step, run and attempt` }));
}

function namesThatSayNothing({ path }: Parsed): Finding[] {
  const name = posix.basename(path);
  if (/(^|[-.])(utils?|helpers?|manager|misc|common)[-.]/.test(name)) {
    return [{ at: 0, message: `${name} does not say what it holds` }];
  }
  if (!/^[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9-]+)*\.ts$/.test(name)) {
    return [{ at: 0, message: `${name} is not in kebab-case` }];
  }
  return [];
}

function filesTooLong({ text }: Parsed): Finding[] {
  const lines = text.trimEnd().split("\n");
  if (lines.length <= LINES_MAX) return [];
  if (lines.slice(0, 20).some((line) => /long because/i.test(line))) return [];
  return [
    {
      at: text.length - 1,
      message: `${lines.length} lines; past ${LINES_MAX} the head of the file says "Long because …"`,
    },
  ];
}

/** Node 20's decoder has a flaw that is not fixed there. */
function decodesBrotli({ nodes }: Parsed): Finding[] {
  return nodes
    .filter(({ node }) => node.type === "Identifier" && /^(createB|b)rotliDecompress/.test(String(node.name)))
    .map(({ node }) => ({
      at: node.start,
      message: "Brotli is never decoded; ask for gzip, answer `br` with 415",
    }));
}

// Reading a file ------------------------------------------------------------------------------------------

function parse(file: SourceFile): Parsed {
  const { program, errors } = parseSync(file.path, file.text);
  const error = errors.find(({ severity }) => severity === "Error");
  if (error) throw new Error(`${file.path} does not parse: ${error.message}`);
  const nodes: Parsed["nodes"] = [];
  walk(program as unknown as Node, null, (node, parent) => nodes.push({ node, parent }));
  return { ...file, nodes, imports: nodes.flatMap(({ node }) => importOf(node, file.path)) };
}

function walk(node: Node, parent: Node | null, visit: (node: Node, parent: Node | null) => void): void {
  visit(node, parent);
  for (const value of Object.values(node)) {
    for (const child of Array.isArray(value) ? value : [value]) if (isNode(child)) walk(child, node, visit);
  }
}

function isNode(value: unknown): value is Node {
  return typeof value === "object" && value !== null && typeof (value as Node).type === "string";
}

function importOf(node: Node, path: string): ImportEdge[] {
  const source = node.source;
  const isEdge = [
    "ImportDeclaration",
    "ExportNamedDeclaration",
    "ExportAllDeclaration",
    "ImportExpression",
    "TSImportType",
  ];
  if (!isEdge.includes(node.type) || !isNode(source) || typeof source.value !== "string") return [];
  const target = source.value.startsWith(".")
    ? posix.normalize(posix.join(posix.dirname(path), source.value))
    : source.value;
  return [{ target, typeOnly: isTypeOnly(node), at: node.start }];
}

function isTypeOnly(node: Node): boolean {
  if (node.type === "TSImportType" || node.importKind === "type" || node.exportKind === "type") return true;
  const specifiers = node.specifiers;
  if (!Array.isArray(specifiers) || specifiers.length === 0) return false;
  return specifiers.every(
    ({ importKind, exportKind }: Node) => importKind === "type" || exportKind === "type",
  );
}

function isPackage(target: string): boolean {
  return !/^(shared|control-plane|agent|test|scripts|examples|proto)\//.test(target);
}

function packageOf(target: string): string {
  return target
    .split("/")
    .slice(0, target.startsWith("@") ? 2 : 1)
    .join("/");
}

function isPure(target: string): boolean {
  return PURE_BUILT_INS.has(target) || PURE_PACKAGES.has(packageOf(target));
}

/** `Date.now` for the node of `Date.now`, also behind `globalThis`; null for anything else. */
function memberName(node: Node): string | null {
  if (node.type !== "MemberExpression" || !isNode(node.object) || !isNode(node.property)) return null;
  const property = node.computed ? node.property.value : node.property.name;
  if (node.object.type === "Identifier") return `${node.object.name}.${property}`;
  if (node.object.type === "MemberExpression" && isNode(node.object.property)) {
    return memberName(node.object)?.startsWith("globalThis.")
      ? `${node.object.property.name}.${property}`
      : null;
  }
  return null;
}

/** A name that stands for its value, and is not the name of a member, a key or a parameter's type. */
function isReference(node: Node, parent: Node | null): boolean {
  if (node.type !== "Identifier" || parent === null) return false;
  if (parent.type === "MemberExpression" && parent.property === node && !parent.computed) {
    return isNode(parent.object) && parent.object.name === "globalThis";
  }
  const isKey = [
    "Property",
    "MethodDefinition",
    "PropertyDefinition",
    "TSMethodSignature",
    "TSPropertySignature",
  ];
  if (isKey.includes(parent.type) && parent.key === node && !parent.shorthand) return false;
  return parent.type !== "TSTypeQuery";
}

function isDateOfNow(node: Node): boolean {
  if (!isNode(node.callee) || node.callee.type !== "Identifier" || node.callee.name !== "Date") return false;
  return node.type === "CallExpression" || (Array.isArray(node.arguments) && node.arguments.length === 0);
}

/** `const { env } = process`, and `import { env } from "node:process"`. */
function isEnvTakenApart(node: Node): boolean {
  if (
    node.type === "VariableDeclarator" &&
    isNode(node.init) &&
    node.init.name === "process" &&
    isNode(node.id)
  ) {
    const properties = node.id.properties;
    return Array.isArray(properties) && properties.some(({ key }: Node) => isNode(key) && key.name === "env");
  }
  if (node.type !== "ImportDeclaration" || !isNode(node.source)) return false;
  if (node.source.value !== "node:process" && node.source.value !== "process") return false;
  return (
    Array.isArray(node.specifiers) &&
    node.specifiers.some(({ imported }: Node) => isNode(imported) && imported.name === "env")
  );
}

/** `stepJobID2` becomes step, job, id, 2. */
function wordsOf(identifier: string): string[] {
  return identifier
    .replace(/([a-z0-9])([A-Z])/g, "$1 $2")
    .split(/[^a-zA-Z0-9]+/)
    .map((word) => word.toLowerCase());
}

function lineAt(text: string, offset: number): number {
  return text.slice(0, offset).split("\n").length;
}
