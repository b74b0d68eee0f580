#!/usr/bin/env node
// A checkout builds what is missing or older than its sources; an installed package brings its bundle along.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const program = new URL("../dist/insitu.js", import.meta.url);
const build = new URL("../scripts/build.mjs", import.meta.url);
const sources = new URL("../control-plane/cli/main.ts", import.meta.url);
if (existsSync(fileURLToPath(build)) && existsSync(fileURLToPath(sources))) {
  const { build: bundle } = await import(build.href);
  const built = await bundle({ say: (line) => process.stderr.write(`${line}\n`) });
  // The bundler keeps a helper process, which would keep this one.
  if (built) await (await import("esbuild")).stop();
}
await import(program.href);
