/** Access policies at the API: what a caller is shown, refused and told, with the real Cedar behind the guard. */
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import type { EnvironmentSpec, PipelineSpec } from "../../shared/model/spec.ts";
import { AccessJudge } from "../access/access-judge.ts";
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
  const at: { judge?: AccessJudge } = {};
  const api = testApi({
    access: { authenticate: async () => principal },
    judge: {
      decide: (...asked) => at.judge!.decide(...asked),
      anywhere: (...asked) => at.judge!.anywhere(...asked),
      reach: (...asked) => at.judge!.reach(...asked),
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
  at.judge = new AccessJudge(facts, pino({ level: "silent" }));
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

describe("a request that a rule lets through with a second person alone", () => {
  const TWO = {
    two: `forbid (principal, action in [Action::"runs:start", Action::"runs:cancel", Action::"agents:revoke", Action::"resources:apply"], resource)
      unless { context.approved };`,
  };
  interface Waiting {
    status: number;
    code: string;
    approval: { id: string };
  }
  const START = { json: { pipeline: "nightly" } };

  test("has no effect until somebody else approved it, and then one, with both names on it", async () => {
    const { as, services } = plant(TWO);
    const keyed = { ...START, headers: { "idempotency-key": "once" } };
    const first = await as("ada", "runner")("/v1/runs", keyed);
    expect(first.status).toBe(202);
    const { approval, code } = (await first.json()) as Waiting;
    expect(code).toBe("approval.needed");
    expect(services.details.size).toBe(2);
    const decision = `/v1/approvals/${approval.id}/decision`;
    const own = await as("ada", "runner")(decision, { json: { approve: true } });
    expect([own.status, await detail(own)]).toEqual([403, expect.stringContaining("somebody else")]);
    // Who has not the right itself is not even shown that there is one.
    for (const path of [decision, `/v1/approvals/${approval.id}`]) {
      const init = path === decision ? { json: { approve: true } } : {};
      expect((await as("vera", "viewer")(path, init)).status).toBe(404);
    }
    expect(await (await as("vera", "viewer")("/v1/approvals")).json()).toEqual({ items: [] });
    const shown = await (await as("bob", "operator")(`/v1/approvals/${approval.id}`)).json();
    expect(shown).toMatchObject({
      requester: "ada",
      needs: [{ right: "runs:start", over: "pipeline/nightly" }],
      body: JSON.stringify(START.json),
      because: "rule people/two forbids it to one person alone",
    });
    expect((await as("bob", "operator")(decision, { json: { approve: true } })).status).toBe(200);
    const again = await as("ada", "runner")("/v1/runs", keyed);
    expect(again.status).toBe(201);
    expect(await again.json()).toMatchObject({ createdBy: "ada, approved by bob" });
    const third = await as("ada", "runner")("/v1/runs", START);
    expect(third.status).toBe(202);
    expect(((await third.json()) as Waiting).approval.id).not.toBe(approval.id);
  });

  test("is let through to the letter: not for another caller, pipeline or parameter", async () => {
    const { as } = plant(TWO);
    const asked = (await (await as("ada", "runner")("/v1/runs", START)).json()) as Waiting;
    await as("bob", "operator")(`/v1/approvals/${asked.approval.id}/decision`, { json: { approve: true } });
    for (const [name, json] of [
      ["eve", START.json],
      ["ada", { pipeline: "payroll" }],
      ["ada", { pipeline: "nightly", params: { all: true } }],
    ] as const)
      expect((await as(name, "runner")("/v1/runs", { json })).status).toBe(202);
    expect((await as("ada", "none")("/v1/runs", START)).status).toBe(403);
    expect((await as("ada", "runner")("/v1/runs", START)).status).toBe(201);
  });

  test("is denied with the reason, and an approval of what was refused after all stays good", async () => {
    const { as } = plant(TWO);
    const path = "/v1/runs/run-nope/cancel";
    const cancel = () => as("ada", "runner")("/v1/runs/run-nightly/cancel", { json: {} });
    expect((await as("ada", "runner")(path, { json: {} })).status).toBe(404);
    const asked = (await (await cancel()).json()) as Waiting;
    const json = { approve: false, reason: "not now" };
    await as("bob", "operator")(`/v1/approvals/${asked.approval.id}/decision`, { json });
    const refused = await cancel();
    expect([refused.status, await detail(refused)]).toEqual([403, expect.stringContaining("not now")]);

    const unplaceable = { json: { pipeline: "unplaceable" } };
    const other = plant(TWO);
    other.services.addResource("pipeline", "unplaceable", { name: "unplaceable" });
    const start = () => other.as("ada", "runner")("/v1/runs", unplaceable);
    const { approval } = (await (await start()).json()) as Waiting;
    await other.as("bob", "operator")(`/v1/approvals/${approval.id}/decision`, { json: { approve: true } });
    expect((await start()).status).toBe(422);
    expect((await start()).status).toBe(422);
  });

  test("waits too where it applies resources or revokes an agent; a dry run does not", async () => {
    const { as, services } = plant(TWO);
    const json = { documents: [], attachments: {} };
    expect((await as("root", "admin")("/v1/apply?dry_run=true", { json })).status).toBe(200);
    const revoke = await as("root", "admin")("/v1/agents/hq/a/revoke", { json: { reason: "stolen" } });
    expect(revoke.status).toBe(202);
    expect(services.revocations).toEqual([]);
    const item = expect.objectContaining({
      requester: "root",
      state: "waiting",
      needs: [{ right: "agents:revoke", over: "environment/hq" }],
    });
    expect(await (await as("root", "admin")("/v1/approvals")).json()).toEqual({ items: [item] });
  });
});
