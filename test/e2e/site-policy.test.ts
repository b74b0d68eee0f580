/** What a site does not allow is not done, whatever the control plane places there: the programs as they are shipped. */
import { execFile } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { AgentView } from "../../control-plane/api/schemas.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 60_000;

const environment = (name: string) => ({ kind: "environment", name, jurisdiction: "CH" });
const agentView = async (plant: Plant, id: string) => {
  const { items } = (await plant.call("GET", "/v1/agents")) as { items: AgentView[] };
  return items.find((agent) => agent.id === id)!;
};

/** The command line, as an operator uses it. */
async function insitu(plant: Plant, ...args: string[]): Promise<string> {
  const env = { ...process.env, INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token, NO_COLOR: "1" };
  const run = promisify(execFile);
  const { stdout } = await run(process.execPath, [join(DIST, "insitu.js"), ...args], { env });
  return stdout;
}

test("a step that placement allows and its site forbids never begins, and the run says which rule of the site forbade it", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  const marker = join(plant.directory, "ran");
  const policy = join(plant.directory, "policy.yaml");
  const allowTrue = `version: 1\npipelines: ["*"]\nexecutors: [process]\ncommands: [["true"]]\ncedar: more.cedar\n`;
  const forbid = `@id("not-this") forbid (principal == Pipeline::"forbidden", action, resource);`;
  writeFileSync(join(plant.directory, "more.cedar"), `permit (principal, action, resource);\n${forbid}\n`, {
    mode: 0o644,
  });
  writeFileSync(policy, allowTrue, { mode: 0o644 });
  const step = (more: object) => ({ id: "s", environment: "site", run: ["true"], ...more });
  const pipeline = (name: string, more: object) => ({ kind: "pipeline", name, steps: [step(more)] });
  await plant.apply(
    environment("site"),
    pipeline("good", {}),
    pipeline("other-command", { run: ["touch", marker], retries: { max: 2, backoff: "1ms" } }),
    // What decides which file `true` is, and what is loaded into it.
    pipeline("other-path", { env: { PATH: plant.directory } }),
    pipeline("forbidden", {}),
    pipeline("preload", { env: { LD_PRELOAD: marker } }),
  );
  await plant.startAgent("site", "a1", ["--site-policy", policy]);
  const { sitePolicy } = await agentView(plant, "site/a1");
  expect(sitePolicy).toEqual({ digest: expect.stringMatching(/^sha256:/), trouble: "" });

  const good = await plant.follow("good");
  expect(good.events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
  const finished = good.events.find((event) => event.kind === "attempt.finished");
  expect(finished).toMatchObject({ outcome: { sitePolicy: sitePolicy!.digest } });

  for (const [name, rule] of [
    ["other-command", /rule commands: command "touch .*" is not allowed here/],
    ["other-path", /rule env: environment variable PATH is not allowed here/],
    ["forbidden", /rule cedar: its Cedar policy not-this forbids it/],
    ["preload", /rule env: environment variable LD_PRELOAD is not allowed here/],
  ] as const) {
    const { events } = await plant.follow(name);
    const vetoes = events.filter((event) => event.kind === "attempt.finished");
    // As often as the step says that it is tried again, and then no more.
    expect(vetoes).toHaveLength(name === "other-command" ? 3 : 1);
    for (const { outcome } of vetoes) {
      expect(outcome).toMatchObject({ status: "refused", sitePolicy: sitePolicy!.digest });
      expect(outcome.error).toEqual({ code: "policy.veto", message: expect.stringMatching(rule) });
    }
    expect(events.find((event) => event.kind === "step.failed")).toMatchObject({ code: "policy.veto" });
    expect(events.at(-1)).toMatchObject({ status: "failed", reason: expect.stringMatching(rule) });
    const [created] = events;
    const shown = await insitu(plant, "runs", "show", (created as { runId: string }).runId);
    expect(shown).toMatch(/the site's policy refuses it, rule (commands|env|cedar)/);
  }
  expect(existsSync(marker)).toBe(false);
});

test("a site changes its policy under a running agent; a bad file changes nothing and is shown", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  const directory = join(plant.directory, "policy");
  mkdirSync(directory);
  const policy = join(directory, "policy.yaml");
  await plant.apply(environment("site"), {
    kind: "pipeline",
    name: "p",
    steps: [{ id: "s", environment: "site", uses: "noop" }],
  });
  await plant.startAgent("site", "a1", ["--site-policy", policy]);
  // Configured, and not there: nothing is taken, and it is said why.
  await plant.until(async () => (await agentView(plant, "site/a1")).notTakingWork.includes("ENOENT"));
  expect(await insitu(plant, "agents", "show", "site/a1")).toMatch(/none in force/);
  const waiting = await plant.start("p");
  writeFileSync(policy, 'version: 1\npipelines: ["*"]\nexecutors: [noop]\n');
  expect((await plant.events(waiting.id, () => false)).at(-1)).toMatchObject({ status: "succeeded" });
  const inForce = async () => (await agentView(plant, "site/a1")).sitePolicy?.digest !== "";
  await plant.until(inForce);
  const { digest } = (await agentView(plant, "site/a1")).sitePolicy!;

  writeFileSync(policy, "version: 1\npipelines: p\n");
  await plant.until(async () => (await agentView(plant, "site/a1")).sitePolicy?.trouble !== "");
  expect((await agentView(plant, "site/a1")).sitePolicy).toEqual({
    digest,
    trouble: expect.stringMatching(/policy\.yaml:2:12: pipelines .*; the policy from before stays in force/),
  });
  expect(await insitu(plant, "agents", "show", "site/a1")).toContain("stays in force");
  expect((await plant.follow("p")).events.at(-1)).toMatchObject({ status: "succeeded" });

  writeFileSync(policy, "version: 1\npipelines: [q]\nexecutors: [noop]\n");
  await plant.until(async () => (await agentView(plant, "site/a1")).sitePolicy?.trouble === "");
  const { events } = await plant.follow("p");
  expect(events.at(-1)).toMatchObject({
    status: "failed",
    reason: expect.stringMatching(/rule pipelines: pipeline p is not allowed here/),
  });
  chmodSync(policy, 0o666);
  await plant.until(async () => (await agentView(plant, "site/a1")).sitePolicy?.trouble !== "");
  expect((await agentView(plant, "site/a1")).sitePolicy?.trouble).toMatch(/others than its owner/);
});
