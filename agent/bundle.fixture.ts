/** Bundles an entry point of the agent, so that a test can run it as a process of its own. */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

export interface Bundle extends Disposable {
  readonly path: string;
}

/** Lies under node_modules, so that it finds the native addon. */
export async function bundleOf(entry: URL): Promise<Bundle> {
  const directory = mkdtempSync(join(ROOT, "node_modules", ".insitu-test-"));
  await build({
    absWorkingDir: ROOT,
    entryPoints: [{ in: fileURLToPath(entry), out: "main" }],
    outdir: directory,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    logLevel: "warning",
    external: ["lmdb", "pino"],
    banner: {
      js: 'import { createRequire as __makeRequire } from "node:module"; const require = __makeRequire(import.meta.url);',
    },
  });
  return {
    path: join(directory, "main.mjs"),
    [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
  };
}
