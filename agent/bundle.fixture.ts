/** Bundles an entry point of the agent, so that a test can run it as a process of its own. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

export interface Bundle extends Disposable {
  readonly path: string;
}

/**
 * Lies under node_modules, so that it finds the native addon; `others` lie beside it under their names. `instead`: what
 * is bundled in a package's place.
 */
export async function bundleOf(
  entry: URL,
  others: Record<string, URL> = {},
  instead: Record<string, URL> = {},
): Promise<Bundle> {
  const directory = mkdtempSync(join(ROOT, "node_modules", ".insitu-test-"));
  writeFileSync(join(directory, "package.json"), '{"type":"module"}');
  await build({
    absWorkingDir: ROOT,
    entryPoints: Object.entries({ main: entry, ...others }).map(([out, url]) => ({
      in: fileURLToPath(url),
      out,
    })),
    outdir: directory,
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    logLevel: "warning",
    external: ["lmdb", "pino", "@cedar-policy/cedar-wasm"].filter((name) => instead[name] === undefined),
    alias: Object.fromEntries(Object.entries(instead).map(([name, url]) => [name, fileURLToPath(url)])),
    banner: {
      js: 'import { createRequire as __makeRequire } from "node:module"; const require = __makeRequire(import.meta.url);',
    },
  });
  return {
    path: join(directory, "main.js"),
    [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
  };
}
