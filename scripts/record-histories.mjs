/**
 * `node scripts/record-histories.mjs [NAME …]`: records runs of this version for `test/compat`. Once for each release, and
 * by name for what came after the others were recorded.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ensure, ROOT } from "./ensure.mjs";

await ensure();
const { build } = await import("esbuild");
const outfile = join(ROOT, "dist", "compat", "record.js");
mkdirSync(join(ROOT, "dist", "compat"), { recursive: true });
await build({
  absWorkingDir: ROOT,
  entryPoints: ["test/compat/record.ts"],
  outfile,
  bundle: true,
  format: "esm",
  platform: "node",
  target: "node20",
  packages: "external",
  logLevel: "warning",
});
const { record } = await import(pathToFileURL(outfile).href);
await record(ROOT, process.argv.slice(2));
