/**
 * `npm run bench [-- -o json] [--quick]`: measures the floors and the budgets of the design in one run.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ensure, ROOT } from "./ensure.mjs";

const { natsServer } = await ensure();
process.env.INSITU_NATS_SERVER ??= natsServer;
const { build } = await import("esbuild");
const outfile = join(ROOT, "dist", "bench", "main.js");
mkdirSync(join(ROOT, "dist", "bench"), { recursive: true });
await build({
  absWorkingDir: ROOT,
  entryPoints: ["test/bench/main.ts"],
  outfile,
  bundle: true,
  format: "esm",
  platform: "node",
  target: "node20",
  packages: "external",
  sourcemap: "inline",
  logLevel: "warning",
});
process.chdir(ROOT);
await import(pathToFileURL(outfile).href);
