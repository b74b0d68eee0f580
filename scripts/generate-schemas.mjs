/**
 * Generates the JSON Schemas (draft 2020-12) in docs/schema/ from the Zod schemas.
 *
 *   node scripts/generate-schemas.mjs [--check]   --check: changes nothing, exits 1 when a file is stale
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const DIRECTORY = join(ROOT, "docs/schema");

async function generate() {
  const { outputFiles } = await build({
    stdin: {
      contents: `
        import { z } from "zod";
        import { AnyDocument, DOCUMENT_SCHEMAS } from "./shared/model/documents.ts";
        import { LedgerEntry } from "./shared/provenance/ledger-entry.ts";
        import { ReceiptStatement } from "./shared/provenance/receipt.ts";
        import { Offer, ReportPayload } from "./shared/wire/attempt.ts";
        const wire = { report: ReportPayload, offer: Offer };
        const evidence = { receipt: ReceiptStatement, "ledger-entry": LedgerEntry };
        const schemas = { ...DOCUMENT_SCHEMAS, insitu: AnyDocument, ...wire, ...evidence };
        export const generated = Object.entries(schemas).map(([name, schema]) => [
          name,
          z.toJSONSchema(schema, { io: "input", target: "draft-2020-12", reused: "inline" }),
        ]);`,
      resolveDir: ROOT,
      loader: "ts",
    },
    bundle: true,
    write: false,
    format: "esm",
    platform: "node",
    logLevel: "error",
  });
  const { generated } = await import(
    `data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`
  );
  return new Map(generated.map(([name, schema]) => [`${name}.schema.json`, text(name, schema)]));
}

const TITLES = {
  insitu: "A resource of Insitu",
  report: "What an agent reports about an attempt",
  offer: "The offer of an attempt to the agents of one environment",
  receipt:
    "What an agent states of an attempt: in-toto Statement v1, predicate https://insitu.dev/attestation/receipt/v1",
  "ledger-entry": "A leaf of the ledger",
};

function text(name, { $schema, ...schema }) {
  return `${JSON.stringify({ $schema, title: TITLES[name] ?? `An Insitu ${name}`, ...schema }, null, 2)}\n`;
}

const fresh = await generate();
const present = new Map(
  filesOf(DIRECTORY).map((name) => [name, readFileSync(join(DIRECTORY, name), "utf8")]),
);
const stale = [
  ...[...fresh].filter(([name, content]) => present.get(name) !== content).map(([name]) => name),
  ...[...present.keys()].filter((name) => !fresh.has(name)),
];
if (!process.argv.includes("--check")) {
  mkdirSync(DIRECTORY, { recursive: true });
  for (const [name, content] of fresh) writeFileSync(join(DIRECTORY, name), content);
  for (const name of present.keys()) if (!fresh.has(name)) rmSync(join(DIRECTORY, name));
} else if (stale.length > 0) {
  const files = stale.map((name) => `docs/schema/${name}`).join(", ");
  console.error(`${files} stale: run node scripts/generate-schemas.mjs and review the difference`);
  process.exitCode = 1;
}

function filesOf(directory) {
  try {
    return readdirSync(directory).filter((name) => name.endsWith(".schema.json"));
  } catch {
    // Not there yet: as stale as it can be.
    return [];
  }
}
