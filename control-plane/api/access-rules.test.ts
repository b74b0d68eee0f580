/** Access policies at the API: what a caller is shown, refused and told, with the real Cedar behind the guard. */
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import type { EnvironmentSpec, PipelineSpec } from "../../shared/model/spec.ts";
import { AccessAuthority } from "../access/access-authority.ts";
import type { Principal } from "../access/rights.ts";
import { testApi } from "./api.fixture.ts";

const PAYROLL_ONLY = {
  "payroll-runs": `permit (principal in Group::"payroll",
    action in [Action::"resources:view", Action::"runs:view", Action::"runs:start", Action::"logs:read"],
    resource in Team::"payroll");`,
};
const HIDE_PAYROLL = {
  "hide-payroll": `forbid (principal, action, resource in Team::"payroll") unless { principal in Group::"payroll" };`,
};

/** An API with two pipelines of two teams, as one caller after the other. */
function plant(rules: Record<string, string>) {
  let principal: Principal = { name: "nobody", grants: [] };
  const at: { authority?: AccessAuthority } = {};
  const api = testApi({
    access: { authenticate: async () => principal },
    authority: {
      decide: (...asked) => at.authority!.decide(...asked),
      anywhere: (...asked) => at.authority!.anywhere(...asked),
      reach: (...asked) => at.authority!.reach(...asked),
    },
  });
  const { services } = api;
  services.addResource("pipeline", "nightly", { name: "nightly", owner: "lab" });
  services.addResource("pipeline", "payroll", { name: "payroll", owner: "payroll" });
  services.addResource("environment", "hq", { name: "hq", jurisdiction: "FR", labels: {} });
  services.addRun("run-nightly", { pipeline: "nightly", status: "succeeded" });
  services.addRun("run-payroll", { pipeline: "payroll", status: "succeeded" });
  const facts = {
    revision: 1,
    policies: () => [{ name: "people", rules }],
    pipelines: () =>
      new Map(services.resources.list("pipeline").map(({ name, spec }) => [name, spec as PipelineSpec])),
    environments: () => services.resources.list("environment").map(({ spec }) => spec as EnvironmentSpec),
    factsOf: (spec: PipelineSpec) => services.resources.factsOf(spec),
  };
  at.authority = new AccessAuthority(facts, pino({ level: "silent" }));
  const as = (name: string, role: Principal["grants"][number]["role"], groups: string[] = []) => {
    principal = { name, groups, grants: [{ role, pipelines: null }] };
    return api.call;
  };
  return { ...api, as };
}

async function detail(response: Response): Promise<string> {
  return ((await response.json()) as { detail: string }).detail;
}

describe("somebody whom a rule gives one team's pipelines", () => {
  test("sees and starts these, and no others", async () => {
    const call = plant(PAYROLL_ONLY).as("ada", "none", ["payroll"]);
    expect((await call("/v1/runs", { json: { pipeline: "payroll" } })).status).toBe(201);
    const runs = (await (await call("/v1/runs")).json()) as { items: { pipeline: string }[] };
    expect(new Set(runs.items.map((run) => run.pipeline))).toEqual(new Set(["payroll"]));
    expect(await (await call("/v1/pipelines")).json()).toMatchObject({ items: [{ name: "payroll" }] });
    expect((await call("/v1/runs/run-payroll/logs")).status).toBe(200);
    expect((await call("/v1/runs/run-nightly")).status).toBe(404);
    expect((await call("/v1/runs/run-nightly/logs")).status).toBe(404);
    expect((await call("/v1/runs", { json: { pipeline: "nightly" } })).status).toBe(404);
    expect((await call("/v1/pipelines/nightly")).status).toBe(404);
    expect((await call("/v1/datasets")).status).toBe(403);
  });

  test("is told which right is missing on what may be seen", async () => {
    const call = plant(PAYROLL_ONLY).as("ada", "none", ["payroll"]);
    const response = await call("/v1/runs/run-payroll/cancel", { json: {} });
    expect(response.status).toBe(403);
    expect(await detail(response)).toContain("this needs the right runs:cancel");
  });

  test("keeps nothing of it outside the group", async () => {
    const call = plant(PAYROLL_ONLY).as("eve", "none", ["lab"]);
    for (const path of ["/v1/runs", "/v1/pipelines", "/v1/runs/run-payroll"])
      expect((await call(path)).status, path).toBe(403);
  });
});

describe("what a rule hides from everybody else", () => {
  test("is hidden from an administrator too, and answered like what is missing", async () => {
    const call = plant(HIDE_PAYROLL).as("root", "admin");
    expect(await (await call("/v1/pipelines")).json()).toMatchObject({ items: [{ name: "nightly" }] });
    const runs = (await (await call("/v1/runs")).json()) as { items: { pipeline: string }[] };
    expect(runs.items.map((run) => run.pipeline)).toEqual(["nightly"]);
    for (const [hidden, missing, json] of [
      ["/v1/runs/run-payroll", "/v1/runs/run-payrolx"],
      ["/v1/runs/run-payroll/events", "/v1/runs/run-payrolx/events"],
      ["/v1/runs/run-payroll/cancel", "/v1/runs/run-payrolx/cancel", {}],
      [
        "/v1/runs/run-payroll/steps/a/resolve",
        "/v1/runs/run-payrolx/steps/a/resolve",
        { as: "failed", reason: "x" },
      ],
      ["/v1/pipelines/payroll", "/v1/pipelines/payrolx"],
    ] as const) {
      const answers = [];
      for (const path of [hidden, missing]) {
        const response = await call(path, json === undefined ? {} : { json });
        answers.push([response.status, (await detail(response)).replaceAll("payrolx", "payroll")]);
      }
      expect(answers[0], hidden).toEqual(answers[1]);
      expect(answers[0]?.[0]).toBe(404);
    }
  });

  test.each(["/v1/runs", "/v1/plan"])(
    "%s of it says what it says of a name that is not there",
    async (path) => {
      const call = plant(HIDE_PAYROLL).as("root", "admin");
      const answers = [];
      for (const pipeline of ["payroll", "payrolx"]) {
        const response = await call(path, { json: { pipeline } });
        answers.push([response.status, (await detail(response)).replace(pipeline, "NAME")]);
      }
      expect(answers[0]).toEqual(answers[1]);
    },
  );

  test.each(["payroll", "payrolx"])("can-i says the same of %s", async (pipeline) => {
    const call = plant(HIDE_PAYROLL).as("root", "admin");
    const answer = await (await call(`/v1/access/can-i?right=runs:start&pipeline=${pipeline}`)).json();
    expect(answer).toMatchObject({ verdict: "yes", because: "the role admin has it" });
  });
});

describe("can-i", () => {
  test("names the rule that decides, also for somebody of a group", async () => {
    const { as } = plant({ ...PAYROLL_ONLY, ...HIDE_PAYROLL });
    const ask = async (query: string) =>
      (await as("vera", "viewer", ["payroll"])(`/v1/access/can-i?${query}`)).json();
    expect(await ask("right=runs:start&pipeline=payroll")).toMatchObject({
      allowed: true,
      because: "rule people/payroll-runs permits it",
    });
    expect(await ask("right=runs:start&pipeline=payroll&as_group=lab")).toMatchObject({
      verdict: "no",
      because: "rule people/hide-payroll forbids it",
    });
    expect(await ask("right=runs:start&pipeline=nightly")).toMatchObject({ verdict: "no" });
  });

  test("tells of other groups only to whom may read the policies", async () => {
    const call = plant(PAYROLL_ONLY).as("eve", "none");
    expect((await call("/v1/access/can-i?right=runs:start&as_group=payroll")).status).toBe(403);
    expect((await call("/v1/access/can-i?right=runs:start&pipeline=a&environment=b")).status).toBe(400);
  });
});
