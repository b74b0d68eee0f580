/**
 * Makes a fresh clone ready: dependencies, a nats-server, the bundles. Does nothing when they are there.
 *
 * Uses Node built-ins alone until the dependencies are installed.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { aptInstall, findNatsServer, mayUseApt } from "./find-nats-server.mjs";

export const ROOT = fileURLToPath(new URL("..", import.meta.url));
const STILL_AT_IT_MS = 5_000;

/**
 * Prints progress to stderr and ends the process with 1 and a reason when something cannot be had.
 *
 * @returns {Promise<{ natsServer: string }>} the path of the nats-server that will do
 */
export async function ensure({ bundles = true } = {}) {
  try {
    checkNode();
    await installDependencies();
    const { path } = await findNatsServer({ install: true, say });
    await ensureBubblewrap();
    await ensureImageTools();
    // In a process of its own: the bundler keeps a helper process, which would outlive its use here.
    if (bundles) await node(["scripts/build.mjs"]);
    return { natsServer: path };
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
    process.exit(1);
  }
}

/** Steps run in a sandbox where there is one. Without it all goes on, and each agent says so. */
async function ensureBubblewrap() {
  if (process.platform !== "linux") return;
  const found = (process.env.PATH ?? "").split(delimiter).some((each) => existsSync(join(each, "bwrap")));
  if (found) return;
  if (mayUseApt(process.env)) {
    say("No bubblewrap found: installing Debian's package");
    const trouble = await aptInstall("bubblewrap", say, process.env).catch((error) => error.message);
    if (trouble === null) return;
    say(`  ${trouble}`);
  }
  say(
    "Note: without bubblewrap, steps run as plain processes (Debian, Ubuntu: sudo apt-get install bubblewrap)",
  );
}

/** For the tests of container images, which say that they were skipped where these are missing. */
async function ensureImageTools() {
  if (process.platform !== "linux") return;
  const has = (name) =>
    (process.env.PATH ?? "").split(delimiter).some((each) => existsSync(join(each, name)));
  for (const [program, name] of [
    ["umoci", "umoci"],
    ["busybox", "busybox-static"],
  ]) {
    if (has(program)) continue;
    const trouble = mayUseApt(process.env)
      ? await aptInstall(name, say, process.env).catch((error) => error.message)
      : "this is not a Debian or Ubuntu where packages may be installed";
    if (trouble !== null) say(`Note: no ${program} (${trouble}): tests of container images are SKIPPED`);
  }
}

function say(line) {
  process.stderr.write(`${line}\n`);
}

function checkNode() {
  const [major = 0, minor = 0, patch = 0] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    throw new Error(
      `Insitu needs Node 20.19 or newer; this is ${process.versions.node}. https://nodejs.org has newer ones.`,
    );
  }
  const patched =
    (major === 22 && (minor > 23 || (minor === 23 && patch >= 4))) ||
    (major === 24 && (minor > 22 || (minor === 22 && patch >= 1))) ||
    major > 24;
  const told = join(ROOT, "node_modules", ".cache", "insitu", "node-advice");
  if (patched || (existsSync(told) && readFileSync(told, "utf8") === process.versions.node)) return;
  say(
    `Note: Node ${process.versions.node} has a flaw in its Brotli decoder. Insitu never decodes Brotli; for everything else on this host, run 22.23.4, 24.22.1 or newer.`,
  );
  process.once("exit", () => {
    // After the installation, which empties node_modules.
    if (!existsSync(join(ROOT, "node_modules"))) return;
    mkdirSync(join(told, ".."), { recursive: true });
    writeFileSync(told, process.versions.node);
  });
}

async function installDependencies() {
  const missing = firstMissingPackage();
  if (missing === null) return;
  say(`Installing the dependencies of package-lock.json (${missing})`);
  const startedAt = performance.now();
  const seconds = () => Math.round((performance.now() - startedAt) / 1000);
  const still = setInterval(() => say(`  still installing, ${seconds()} s`), STILL_AT_IT_MS);
  try {
    const npm = process.env.npm_execpath;
    const args = ["ci", "--include=dev", "--no-audit", "--no-fund", "--loglevel=error"];
    await (npm?.endsWith(".js") ? node([npm, ...args]) : run("npm", args));
  } catch (error) {
    throw new Error(
      `npm ci failed: ${error.message}. Its own words are above; a registry that cannot be reached is the usual reason.`,
    );
  } finally {
    clearInterval(still);
  }
  say(`Installed in ${seconds()} s`);
}

/**
 * Compares the lock file with npm's own record of what it put into node_modules.
 *
 * @returns {string | null} what is missing, or null when all is there
 */
function firstMissingPackage() {
  const record = join(ROOT, "node_modules", ".package-lock.json");
  if (!existsSync(record)) return "none are installed";
  const wanted = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")).packages;
  const installed = JSON.parse(readFileSync(record, "utf8")).packages;
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === "" || entry.link) continue;
    const there = installed[path];
    // Optional packages are those of other platforms, mostly.
    if (there === undefined && (entry.optional || entry.devOptional || entry.peer)) continue;
    if (there?.version !== entry.version) {
      const name = path.replace(/^.*node_modules\//, "");
      return `${name} ${entry.version} is wanted, ${there?.version ?? "none"} is there`;
    }
  }
  return null;
}

function node(args) {
  return run(process.execPath, args);
}

/** Output goes to stderr: what a command of ours prints to stdout is its result. */
function run(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: ROOT, stdio: ["ignore", 2, 2] });
    child.on("error", reject);
    child.on("exit", (code, signal) => {
      if (code === 0) resolve();
      else reject(new Error(`${[command, ...args].join(" ")} ended with ${signal ?? code}`));
    });
  });
}
