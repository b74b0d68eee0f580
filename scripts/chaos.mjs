/**
 * `npm run chaos -- [--minutes M] [--seed N]`: real processes, faults by chance, and a witness at the sites.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ensure, ROOT } from "./ensure.mjs";

await ensure();
const { build } = await import("esbuild");
const outfile = join(ROOT, "dist", "chaos", "main.js");
mkdirSync(join(ROOT, "dist", "chaos"), { recursive: true });
await build({
  absWorkingDir: ROOT,
  entryPoints: ["test/chaos/main.ts"],
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
