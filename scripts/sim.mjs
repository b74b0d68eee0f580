/**
 * `npm run sim -- [--seed N] [--worlds K] [--plant BUG] [--verbose]`: the deciding code in worlds of virtual time.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ensure, ROOT } from "./ensure.mjs";

await ensure();
const { build } = await import("esbuild");
const outfile = join(ROOT, "dist", "sim", "main.js");
mkdirSync(join(ROOT, "dist", "sim"), { recursive: true });
await build({
  absWorkingDir: ROOT,
  entryPoints: ["test/simulation/main.ts"],
  outfile,
  bundle: true,
  format: "esm",
  platform: "node",
  target: "node20",
  packages: "external",
  sourcemap: "inline",
  logLevel: "warning",
});
await import(pathToFileURL(outfile).href);
