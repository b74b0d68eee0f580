/** What a site does not allow is not done, whatever the control plane places there: the programs as they are shipped. */
import { execFile } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
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
  const allowTrue = `version: 1\npipelines: ["*"]\nexecutors: [process]\ncommands: [["true"]]\nowners: [statistics]\ndatasets: [{name: "*", owner: lab}]\nmaximum: {memory: 1GiB}\ncedar: more.cedar\n`;
  const forbid = `@id("not-this") forbid (principal == Pipeline::"forbidden", action, resource);`;
  writeFileSync(join(plant.directory, "more.cedar"), `permit (principal, action, resource);\n${forbid}\n`, {
    mode: 0o644,
  });
  writeFileSync(policy, allowTrue, { mode: 0o644 });
  const resources = { memory: "1GiB" };
  const step = (more: object) => ({ id: "s", environment: "site", run: ["true"], resources, ...more });
  const pipeline = (name: string, more: object, owner: string | undefined = "statistics") => ({
    kind: "pipeline",
    name,
    ...(owner === "" ? {} : { owner }),
    steps: [step(more)],
  });
  const dataset = (name: string, owner: string) => ({
    kind: "dataset",
    name,
    owner,
    classification: "internal",
    residency: ["CH"],
    environments: ["site"],
  });
  await plant.apply(
    environment("site"),
    dataset("ours", "lab"),
    dataset("theirs", "others"),
    pipeline("good", { reads: ["ours"] }),
    pipeline("of-others", {}, "others"),
    pipeline("of-nobody", {}, ""),
    pipeline("data-of-others", { reads: ["ours", "theirs"] }),
    pipeline("other-command", { run: ["touch", marker], retries: { max: 2, backoff: "1ms" } }),
    // What decides which file `true` is, and what is loaded into it.
    pipeline("other-path", { env: { PATH: plant.directory } }),
    pipeline("forbidden", {}),
    pipeline("preload", { env: { LD_PRELOAD: marker } }),
    pipeline("too-large", { resources: { memory: "2GiB" } }),
    pipeline("unsaid", { resources: { cpu: 1 } }),
  );
  const rows = ["--dataset", `ours=${plant.directory}`, "--dataset", `theirs=${plant.directory}`];
  await plant.startAgent("site", "a1", ["--site-policy", policy, ...rows]);
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
    ["of-others", /rule owners: a pipeline of others is not allowed here/],
    ["of-nobody", /rule owners: the pipeline names no owner/],
    ["data-of-others", /rule datasets: dataset theirs is said to be of others/],
    ["too-large", /rule maximum: memory 2 ?GiB is more than is allowed here/],
    ["unsaid", /rule maximum: the step has to say in its resources how much memory it takes/],
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
    expect(shown).toMatch(/the site's policy refuses it, rule (commands|env|cedar|maximum|owners|datasets)/);
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

test("an agent with the key of its site's team takes no policy that the team has not signed, nor an older one", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  const file = (name: string): string => join(plant.directory, name);
  const [policy, seal] = [file("policy.yaml"), file("policy.yaml.sig")];
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  writeFileSync(file("team.key"), privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600 });
  writeFileSync(file("team.pub"), publicKey.export({ type: "spki", format: "pem" }), { mode: 0o644 });
  const put = (text: string): void => writeFileSync(policy, `version: 1\n${text}`, { mode: 0o644 });
  const sign = async (): Promise<void> => {
    const args = ["--site-policy", policy, "--key", file("team.key"), "--environment", "site"];
    await promisify(execFile)(process.execPath, [join(DIST, "insitu-agent.js"), "policy", "sign", ...args]);
  };
  await plant.apply(environment("site"), {
    kind: "pipeline",
    name: "p",
    steps: [{ id: "s", environment: "site", uses: "noop" }],
  });
  put('pipelines: ["*"]\nexecutors: [noop]\n');
  await sign();
  const first = { policy: readFileSync(policy), seal: readFileSync(seal) };
  const flags = ["--site-policy", policy, "--site-policy-key", file("team.pub")];
  const agent = await plant.startAgent("site", "a1", flags);
  expect((await plant.follow("p")).events.at(-1)).toMatchObject({ status: "succeeded" });

  put("pipelines: [q]\nexecutors: [noop]\n");
  const trouble = async () => (await agentView(plant, "site/a1")).sitePolicy?.trouble ?? "";
  await plant.until(async () => (await trouble()).includes("changed and not signed again"));
  expect((await plant.follow("p")).events.at(-1)).toMatchObject({ status: "succeeded" });
  await sign();
  await plant.until(async () => (await trouble()) === "");
  expect((await plant.follow("p")).events.at(-1)).toMatchObject({
    status: "failed",
    reason: expect.stringMatching(/rule pipelines/),
  });

  // What the team has taken back comes again, and the agent starts with it.
  agent.kill("SIGTERM");
  await once(agent, "exit");
  writeFileSync(policy, first.policy);
  writeFileSync(seal, first.seal);
  plant.spawnAgent("site", "a1", flags);
  await plant.until(async () =>
    (await agentView(plant, "site/a1")).notTakingWork.includes("serial 1, after 2"),
  );
});
