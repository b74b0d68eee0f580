/**
 * `npm run sbom [-- FILE]`: what an installation is made of, as CycloneDX 1.5 in dist/sbom.cdx.json or FILE.
 * The packages of the lock file that are installed to run, with versions, licences and digests.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { ensure, ROOT } from "./ensure.mjs";

const file = resolve(process.argv[2] ?? join(ROOT, "dist", "sbom.cdx.json"));
await ensure();
const args = ["sbom", "--sbom-format", "cyclonedx", "--sbom-type", "application"];
const { status, stdout, stderr } = spawnSync("npm", args, {
  cwd: ROOT,
  encoding: "utf8",
  maxBuffer: 2 ** 26,
});
if (status !== 0) {
  process.stderr.write(stderr);
  process.exit(status ?? 1);
}
const bom = JSON.parse(stdout);
// npm's own --omit=dev leaves out packages that are needed to run when some tool of ours needs them as well.
const { packages } = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
const run = new Set();
for (const [path, { version, dev, devOptional }] of Object.entries(packages)) {
  if (path !== "" && !dev && !devOptional) run.add(`${path.split("node_modules/").at(-1)}@${version}`);
}
bom.components = bom.components.filter(({ name, version }) => run.has(`${name}@${version}`));
const kept = new Set([bom.metadata.component["bom-ref"], ...bom.components.map((one) => one["bom-ref"])]);
bom.dependencies = bom.dependencies
  .filter(({ ref }) => kept.has(ref))
  .map(({ ref, dependsOn }) => ({ ref, dependsOn: dependsOn.filter((other) => kept.has(other)) }));
mkdirSync(dirname(file), { recursive: true });
writeFileSync(file, `${JSON.stringify(bom, null, 2)}\n`);
console.log(`${bom.components.length} components in ${file}`);
