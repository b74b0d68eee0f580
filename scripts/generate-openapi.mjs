/**
 * Generates docs/openapi.json from the routes of the HTTP API.
 *
 *   node scripts/generate-openapi.mjs [--check]   --check: changes nothing, exits 1 when the file is stale
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const FILE = join(ROOT, "docs/openapi.json");

async function generate() {
  const { outputFiles } = await build({
    stdin: {
      contents: `
        import { OpenAPIHono } from "@hono/zod-openapi";
        import { addRoutes } from "./control-plane/api/api.ts";
        import { openApiDocument } from "./control-plane/api/openapi.ts";
        const app = new OpenAPIHono();
        addRoutes(app, {});
        export const document = openApiDocument(app);`,
      resolveDir: ROOT,
      loader: "ts",
    },
    bundle: true,
    write: false,
    format: "esm",
    platform: "node",
    logLevel: "error",
  });
  const { document } = await import(
    `data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`
  );
  return `${JSON.stringify(document, null, 2)}\n`;
}

const fresh = await generate();
if (!process.argv.includes("--check")) {
  mkdirSync(dirname(FILE), { recursive: true });
  writeFileSync(FILE, fresh);
} else if (readOrNothing(FILE) !== fresh) {
  console.error(
    "docs/openapi.json is stale: run node scripts/generate-openapi.mjs and review the difference",
  );
  process.exitCode = 1;
}

function readOrNothing(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    // Not there yet: as stale as it can be.
    return "";
  }
}
