/**
 * `npm test`: sets up what is missing, then every check and every test. The last line is `N passed, N failed`.
 *
 * `npm test -- shared/engine -t "a step"` gives its arguments to Vitest and runs the tests alone.
 * A check counts as one test. Tests that do not run at all count as a failure.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensure, ROOT } from "./ensure.mjs";

const filters = process.argv.slice(2);
const { natsServer } = await ensure();
const env = { ...process.env, INSITU_NATS_SERVER: process.env.INSITU_NATS_SERVER ?? natsServer };

let passed = 0;
let failed = 0;

if (filters.length === 0) {
  for (const { name, args } of checks()) await check(name, args);
}
await tests();

console.log(`\n${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;

function checks() {
  const bin = (name) => join("node_modules", ".bin", name);
  const generated = readdirSync(join(ROOT, "scripts"))
    .filter((name) => /^generate-.*\.mjs$/.test(name))
    .map((name) => ({
      name: `${name.replace(/^generate-|\.mjs$/g, "")}: generated files are fresh`,
      args: [process.execPath, join("scripts", name), "--check"],
    }));
  return [
    { name: "biome", args: [bin("biome"), "check", "--error-on-warnings", "."] },
    { name: "types", args: [bin("tsc"), "-p", "."] },
    { name: "knip: nothing is unused", args: [bin("knip"), "--no-progress"] },
    ...generated,
  ];
}

/** Quiet when it passes. */
async function check(name, [command, ...args]) {
  const startedAt = performance.now();
  const chunks = [];
  const { code, signal } = await run(command, args, (chunk) => chunks.push(chunk));
  const took = `${((performance.now() - startedAt) / 1000).toFixed(1)} s`;
  if (code === 0) {
    passed++;
    console.log(`✓ ${name} (${took})`);
  } else {
    failed++;
    process.stdout.write(Buffer.concat(chunks));
    console.log(`✗ ${name} (${signal ?? `exit ${code}`}, ${took})`);
  }
}

async function tests() {
  const directory = mkdtempSync(join(tmpdir(), "insitu-test-"));
  const report = join(directory, "report.json");
  try {
    const { code } = await run(
      process.execPath,
      [
        join("node_modules", "vitest", "vitest.mjs"),
        "run",
        ...filters,
        "--reporter=default",
        "--reporter=json",
        `--outputFile.json=${report}`,
      ],
      (chunk) => process.stdout.write(chunk),
    );
    const result = existsSync(report) ? JSON.parse(readFileSync(report, "utf8")) : null;
    const testsPassed = result?.numPassedTests ?? 0;
    const testsFailed = result?.numFailedTests ?? 0;
    passed += testsPassed;
    failed += testsFailed;
    // A file that does not load, an unhandled rejection, or no test at all: no test failed, and yet all is not well.
    if (testsFailed === 0 && (code !== 0 || testsPassed === 0)) {
      failed++;
      console.log(`✗ vitest (exit ${code}, ${testsPassed} tests passed)`);
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function run(command, args, onOutput) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: ROOT, env, stdio: ["ignore", "pipe", "pipe"] });
    child.stdout.on("data", onOutput);
    child.stderr.on("data", onOutput);
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal }));
  });
}
