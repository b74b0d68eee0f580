#!/usr/bin/env node
/** Runs dist/insitu.js. In a checkout it is built first when a source is newer; an installed package comes built. */
import { existsSync } from "node:fs";

const sources = new URL("../control-plane/cli/main.ts", import.meta.url);
if (existsSync(sources)) {
  const { build } = await import("../scripts/build.mjs");
  // To stderr: what a command prints to stdout is its result.
  const built = await build({ say: (line) => process.stderr.write(`${line}\n`) });
  if (built) {
    // The bundler keeps a helper process; it ends with this.
    const { stop } = await import("esbuild");
    await stop();
  }
}
process.argv[1] = new URL("../dist/insitu.js", import.meta.url).pathname;
await import("../dist/insitu.js");
