/** Tokens and what they may do, at the server as it is shipped. */
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const LIMIT_MS = 60_000;

const pipeline = (name: string) => ({
  kind: "pipeline",
  name,
  steps: [{ id: "s", environment: "site", uses: "noop" }],
});

test("a program's token starts its pipeline over a killed server, does nothing else, and lies nowhere on disk", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  await plant.apply(SITE, pipeline("nightly"), pipeline("payroll"));
  const payroll = await plant.start("payroll");
  const made = await plant.call("POST", "/v1/tokens", {
    name: "ci",
    role: "runner",
    pipelines: ["nightly"],
  });
  const ci = (made as { token: string }).token;
  const operator = plant.token;

  const gone = once(plant.server!, "exit");
  plant.server!.kill("SIGKILL");
  await gone;
  await plant.startServer();

  plant.token = ci;
  const run = await plant.start("nightly");
  expect(run.createdBy).toBe("ci");
  const { items } = (await plant.call("GET", "/v1/runs")) as { items: { id: string }[] };
  expect(items.map(({ id }) => id)).toEqual([run.id]);
  await expect(plant.run(payroll.id)).rejects.toThrow(/: 404 /);
  await expect(plant.start("payroll")).rejects.toThrow(/: 404 /);
  await expect(plant.call("DELETE", "/v1/pipelines/nightly")).rejects.toThrow(/: 403 .*resources:delete/);
  await expect(plant.call("GET", "/v1/tokens")).rejects.toThrow(/: 403 .*tokens:manage/);

  plant.token = operator;
  await plant.call("DELETE", "/v1/tokens/ci");
  plant.token = ci;
  await expect(plant.call("GET", "/v1/runs")).rejects.toThrow(/: 401 /);

  const secret = ci.slice("ins_ci_".length);
  const files = readdirSync(plant.directory, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  expect(files.length).toBeGreaterThan(5);
  const holding = files
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => readFileSync(path).includes(secret));
  expect(holding).toEqual([]);
});

test("rules let a group run its own pipelines and nothing else, over a killed server; some things need two people", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  await plant.apply(
    SITE,
    { kind: "environment", name: "clinic", jurisdiction: "DE" },
    { ...pipeline("nightly"), owner: "lab" },
    pipeline("payroll"),
    {
      kind: "access-policy",
      name: "people",
      rules: {
        lab: `permit (principal in Group::"lab",
          action in [Action::"resources:view", Action::"runs:view", Action::"runs:start"], resource in Team::"lab");`,
        clinic: `forbid (principal, action == Action::"runs:start", resource is Pipeline)
          when { resource.environments.contains(Environment::"clinic") };`,
        edit: `permit (principal in Group::"lab", action == Action::"resources:apply", resource in Team::"lab");`,
        two: `forbid (principal, action == Action::"agents:revoke", resource) unless { context.approved };`,
      },
    },
  );
  const operator = plant.token;
  const make = async (asked: object) =>
    ((await plant.call("POST", "/v1/tokens", asked)) as { token: string }).token;
  const lab = await make({ name: "lab-ci", role: "none", groups: ["lab"] });
  const author = await make({ name: "author", role: "viewer", groups: ["lab"] });
  const ada = await make({ name: "ada", role: "agent-admin" });
  const bob = await make({ name: "bob", role: "agent-admin" });

  const gone = once(plant.server!, "exit");
  plant.server!.kill("SIGKILL");
  await gone;
  await plant.startServer();

  plant.token = lab;
  const run = await plant.start("nightly");
  expect(run.createdBy).toBe("lab-ci");
  await expect(plant.start("payroll")).rejects.toThrow(/: 404 /);
  await expect(plant.call("GET", "/v1/datasets")).rejects.toThrow(/: 403 .*resources:view/);
  // Who moves a pipeline to where nobody may start it has moved it out of everybody's reach, its own too.
  plant.token = operator;
  const moved = {
    ...pipeline("nightly"),
    owner: "lab",
    steps: [{ id: "s", environment: "clinic", uses: "noop" }],
  };
  await plant.apply(moved);
  await expect(plant.start("nightly")).rejects.toThrow(/: 403 .*people\/clinic/);
  plant.token = lab;
  await expect(plant.start("nightly")).rejects.toThrow(/: 403 .*runs:start/);
  await expect(plant.apply(pipeline("nightly"))).rejects.toThrow(/: 403 .*resources:view/);
  // An author of the team makes and changes what is the team's, and takes nothing of others.
  plant.token = author;
  await plant.apply({ ...pipeline("weekly"), owner: "lab" });
  await plant.apply({ ...pipeline("weekly"), owner: "lab", description: "changed" });
  for (const taken of [
    { ...pipeline("payroll"), owner: "lab" },
    { ...pipeline("weekly"), owner: "else" },
    SITE,
  ])
    await expect(plant.apply(taken)).rejects.toThrow(/: 403 .*resources:apply/);
  plant.token = operator;
  await plant.call("DELETE", "/v1/pipelines/payroll");
  plant.token = author;
  await expect(plant.apply({ ...pipeline("payroll"), owner: "lab" })).rejects.toThrow(
    /: 403 .*resources:apply/,
  );
  const policy = {
    kind: "access-policy",
    name: "mine",
    rules: { all: "permit (principal, action, resource);" },
  };
  await expect(plant.apply(policy)).rejects.toThrow(/: 403 .*access:edit/);

  plant.token = ada;
  const revoke = () => plant.call("POST", "/v1/agents/site/a/revoke", { reason: "stolen" });
  const waiting = (await revoke()) as { code: string; approval: { id: string } };
  expect(waiting.code).toBe("approval.needed");
  const decide = () => plant.call("POST", `/v1/approvals/${waiting.approval.id}/decision`, { approve: true });
  await expect(decide()).rejects.toThrow(/: 403 /);
  plant.token = lab;
  await expect(decide()).rejects.toThrow(/: 404 /);
  plant.token = bob;
  expect(await decide()).toMatchObject({ state: "approved", decision: { by: "bob" } });
  plant.token = ada;
  // The right was had now: what is missing is the agent.
  await expect(revoke()).rejects.toThrow(/: 404 .*no agent/);
});
