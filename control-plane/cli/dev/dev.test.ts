/** The demonstration as people start it: real processes, a real nats-server, in a folder of their own. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../../shared/system.ts";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
const GONE_TIMEOUT_MS = 15_000;
const POLL_MS = 50;

let directory: string;
const started: Dev[] = [];

/** One `insitu dev`, with what it wrote. */
class Dev {
  readonly process: ChildProcess;
  readonly exit: Promise<number | null>;
  text = "";
  readonly #waiting = new Set<() => void>();

  constructor(...args: string[]) {
    const argv = [join(ROOT, "dist/insitu.js"), "dev", "--data", directory, ...args];
    this.process = spawn(process.execPath, argv, { stdio: ["ignore", "pipe", "pipe"], env: environment() });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream?.setEncoding("utf8").on("data", (chunk: string) => {
        this.text += chunk;
        for (const check of this.#waiting) check();
      });
    }
    this.exit = new Promise((resolve) => this.process.once("close", resolve));
    started.push(this);
  }

  /** Resolves when it has written this; rejects when it ends without. */
  said(pattern: RegExp): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = (): void => {
        if (!pattern.test(this.text)) return;
        this.#waiting.delete(check);
        resolve();
      };
      this.#waiting.add(check);
      void this.exit.then(() => reject(new Error(`it ended without ${pattern}:\n${this.text}`)));
      check();
    });
  }

  get children(): { name: string; pid: number }[] {
    const lock = JSON.parse(readFileSync(join(directory, "dev.json"), "utf8")) as {
      children: { name: string; pid: number }[];
    };
    return lock.children;
  }

  pidOf(name: string): number {
    const child = this.children.find((one) => one.name === name);
    if (!child) throw new Error(`${name} is not among ${JSON.stringify(this.children)}`);
    return child.pid;
  }
}

function environment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("NODE_")));
}

/** Processes that name the folder in their arguments: server, agents, nats-server. */
function processesOf(): string[] {
  const list = execFileSync("ps", ["-eo", "pid=,stat=,args="], { encoding: "utf8" }).split("\n");
  return list.filter((line) => line.includes(directory) && !/^\s*\d+ Z/.test(line));
}

/** They are no children of ours, so there is no event to wait for. */
async function allGone(): Promise<string[]> {
  const deadlineMs = systemClock.monotonicMs() + GONE_TIMEOUT_MS;
  while (processesOf().length > 0 && systemClock.monotonicMs() < deadlineMs) await systemClock.sleep(POLL_MS);
  return processesOf();
}

beforeAll(() => {
  execFileSync(process.execPath, [join(ROOT, "scripts/build.mjs")], { cwd: ROOT });
}, 60_000);

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "insitu-dev-"));
});

afterEach(async () => {
  for (const dev of started.splice(0)) {
    dev.process.kill("SIGINT");
    await dev.exit;
  }
  expect(await allGone()).toEqual([]);
  rmSync(directory, { recursive: true, force: true });
}, 40_000);

test("once: the federated answer equals the pooled one, the exit code says so, and nothing is left running", async () => {
  const dev = new Dev("--once", "--port", "0", "-o", "json");
  expect(await dev.exit, dev.text).toBe(0);
  expect(processesOf()).toEqual([]);
  const json = JSON.parse(dev.text.slice(dev.text.indexOf("\n{"), dev.text.lastIndexOf("\n}") + 2)) as {
    comparison: { equal: boolean; difference: number };
    egress: { site: string; sent: number }[];
    held: { environment: string; bytes: number }[];
    steps: { step: string; agent: string }[];
    evidence: { reads: string[]; agent: string }[];
  };
  expect(json.evidence.map(({ reads, agent }) => `${reads.join()} ${agent}`).sort()).toEqual(
    ["biscoe", "dream", "torgersen"].map((site) => `penguins-${site} ${site}/agent-1`),
  );
  expect(json.comparison.equal).toBe(true);
  expect(json.comparison.difference).toBeLessThan(1e-9);
  expect(Object.fromEntries(json.steps.map(({ step, agent }) => [step, agent.split("/")[0]]))).toEqual({
    "statistics-biscoe": "biscoe",
    "statistics-dream": "dream",
    "statistics-torgersen": "torgersen",
    merge: "hq",
  });
  for (const { environment: site, bytes } of json.held) {
    expect(json.egress.find((one) => one.site === site)?.sent).toBeLessThan(bytes / 10);
  }
}, 60_000);

test("a second one in the same folder is refused, and says whose it is", async () => {
  const first = new Dev("--port", "0");
  await first.said(/Everything is up/);
  const second = new Dev("--once");
  expect(await second.exit).toBe(7);
  expect(second.text).toContain(`as process ${first.process.pid}`);
  first.process.kill("SIGINT");
  expect(await first.exit, first.text).toBe(0);
  expect(processesOf()).toEqual([]);
}, 60_000);

test("one that is killed takes its children along, and the next start in its folder works", async () => {
  const killed = new Dev("--port", "0");
  await killed.said(/Everything is up/);
  killed.process.kill("SIGKILL");
  await killed.exit;
  const next = new Dev("--once", "--port", "0");
  expect(await next.exit, next.text).toBe(0);
  expect(next.text).toContain("unchanged");
}, 60_000);

test("an agent that dies is named with its log; a server that dies ends it with a reason", async () => {
  const dev = new Dev("--port", "0");
  await dev.said(/Everything is up/);
  process.kill(dev.pidOf("agent-dream"), "SIGKILL");
  await dev.said(/agent-dream ended by signal SIGKILL[\s\S]*agent-dream\.log[\s\S]*Start it again/);
  process.kill(dev.pidOf("server"), "SIGKILL");
  expect(await dev.exit).toBe(8);
  expect(dev.text).toMatch(/server ended by signal SIGKILL[\s\S]*server\.log/);
  expect(processesOf()).toEqual([]);
}, 60_000);

test("interrupted while it starts, it stops what has started", async () => {
  const dev = new Dev("--port", "0");
  await dev.said(/✓ server/);
  dev.process.kill("SIGINT");
  expect(await dev.exit).toBe(130);
  expect(processesOf()).toEqual([]);
}, 60_000);
