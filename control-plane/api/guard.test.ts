/** Every route, as callers of every role: who is let in, who is told what is missing, and what stays hidden. */
import { OpenAPIHono } from "@hono/zod-openapi";
import { describe, expect, test } from "vitest";
import { may, type Principal, RIGHTS, type Right, ROLES, type Role } from "../access/rights.ts";
import { DIGEST, testApi } from "./api.fixture.ts";
import type { ApiEnv } from "./context.ts";
import { checkGuards } from "./guard.ts";
import { healthRoutes } from "./health-routes.ts";
import { openApiDocument } from "./openapi.ts";

interface Operation {
  operationId: string;
  security?: unknown[];
  "x-insitu-right"?: string;
  "x-insitu-scope"?: string;
}

function as(role: Role, pipelines: string[] | null = null) {
  const principal: Principal = { name: "ci", grants: [{ role, pipelines }] };
  const api = testApi({ access: { authenticate: async () => principal } });
  for (const name of ["nightly", "payroll"]) api.services.addResource("pipeline", name);
  api.services.addResource("dataset", "salaries");
  api.services.addRun("run-nightly", { pipeline: "nightly", status: "succeeded" });
  api.services.addRun("run-payroll", { pipeline: "payroll", status: "succeeded" });
  return { ...api, principal };
}

const DOCUMENT = openApiDocument(testApi().app) as { paths: Record<string, Record<string, Operation>> };
const OPERATIONS = Object.entries(DOCUMENT.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({
    path,
    method: method.toUpperCase(),
    ...operation,
  })),
);
const GUARDED = OPERATIONS.filter((one) => one.path.startsWith("/v1/"));

/** What makes each request well-formed, so that only the right decides. */
const BODIES: Record<string, object> = {
  startRun: { pipeline: "payroll" },
  cancelRun: {},
  resolveStep: { as: "failed", reason: "known" },
  plan: { pipeline: "payroll" },
  apply: { documents: [], attachments: {} },
  createJoinToken: { environment: "hq" },
  decideJoinRequest: { approve: true, fingerprint: `sha256:${"0".repeat(64)}` },
  revokeAgent: { reason: "stolen" },
  cordonAgent: { reason: "disk change" },
  drainAgent: { withinMs: 1_000 },
  createToken: { name: "ada", role: "viewer" },
  decideApproval: { approve: true },
};

async function ask(api: ReturnType<typeof testApi>, { path, method, operationId }: (typeof GUARDED)[number]) {
  const url = path
    .replace("{id}", "run-payroll")
    .replace("{step}", "merge")
    .replace("{digest}", DIGEST)
    .replace("{environment}", "hq")
    .replace("{name}", "payroll");
  const query = operationId === "canI" ? "?right=runs:view" : "";
  const json = BODIES[operationId];
  const response = await api.call(url + query, { method, ...(json === undefined ? {} : { json }) });
  const text = await response.text();
  return { status: response.status, text };
}

describe("routes", () => {
  test("each declares a right that there is; only the health routes are open", () => {
    expect(GUARDED.length).toBeGreaterThan(20);
    for (const one of OPERATIONS) {
      if (one.path.startsWith("/v1/")) {
        expect([...RIGHTS, "signed-in"], one.operationId).toContain(one["x-insitu-right"]);
        expect(one.security, one.operationId).toBeUndefined();
      } else expect(["/livez", "/readyz", "/version"]).toContain(one.path);
    }
  });

  test("an API with a route that declares none does not start", () => {
    const app = new OpenAPIHono<ApiEnv>();
    healthRoutes(app, testApi().services as never);
    expect(() => checkGuards(app)).not.toThrow();
    app.openAPIRegistry.registerPath({ method: "get", path: "/v1/open", security: [], responses: {} });
    expect(() => checkGuards(app)).toThrow(/get \/v1\/open declares no right/);
  });

  const matrix = ROLES.flatMap((role) => GUARDED.map((one) => [role, one.operationId, one] as const));
  test.each(matrix)("%s over everything: %s", async (role, _id, operation) => {
    const api = as(role);
    const { status, text } = await ask(api, operation);
    const right = operation["x-insitu-right"] as Right | "signed-in";
    if (right === "signed-in" || may(api.principal, right, null)) {
      expect([401, 403, 500]).not.toContain(status);
    } else {
      expect(status).toBe(403);
      expect(text).toContain(`this needs the right ${right}`);
    }
  });

  test.each(matrix)("%s of another pipeline: %s reaches nothing of payroll", async (role, _id, operation) => {
    const { status, text } = await ask(as(role, ["nightly"]), operation);
    if (/Approval$/.test(operation.operationId)) expect(status).toBe(404);
    else if (operation["x-insitu-right"] === "signed-in") expect(status).toBe(200);
    else if (/^list(Runs|Pipelines)$/.test(operation.operationId)) expect(text).not.toContain("payroll");
    else expect([403, 404]).toContain(status);
    expect(text).not.toContain("salaries");
  });
});

describe("a caller of one pipeline", () => {
  test("starts, sees and cancels its runs", async () => {
    const { call } = as("runner", ["nightly"]);
    expect((await call("/v1/runs", { json: { pipeline: "nightly" } })).status).toBe(201);
    expect((await call("/v1/runs/run-nightly")).status).toBe(200);
    expect((await call("/v1/runs/run-nightly/logs")).status).toBe(200);
    expect((await call("/v1/runs/run-nightly/cancel", { json: {} })).status).toBe(200);
    const runs = (await (await call("/v1/runs")).json()) as { items: { pipeline: string }[] };
    expect(runs.items.map((run) => run.pipeline)).toEqual(["nightly", "nightly"]);
  });

  test.each<[string, string, object | undefined, string]>([
    ["a run", "/v1/runs/run-payroll", undefined, "/v1/runs/run-payrolx"],
    ["a run's events", "/v1/runs/run-payroll/events", undefined, "/v1/runs/run-payrolx/events"],
    ["a run's logs", "/v1/runs/run-payroll/logs", undefined, "/v1/runs/run-payrolx/logs"],
    ["cancelling", "/v1/runs/run-payroll/cancel", {}, "/v1/runs/run-payrolx/cancel"],
    ["a pipeline", "/v1/pipelines/payroll", undefined, "/v1/pipelines/payrolx"],
    [
      "a version",
      `/v1/pipelines/payroll/versions/${DIGEST}`,
      undefined,
      `/v1/pipelines/payrolx/versions/${DIGEST}`,
    ],
  ])("%s that is hidden is answered like one that is not there", async (_what, hidden, json, missing) => {
    const { call } = as("runner", ["nightly"]);
    const answers = [];
    for (const path of [hidden, missing]) {
      const response = await call(path, json === undefined ? {} : { json });
      const { instance: _instance, ...body } = (await response.json()) as Record<string, unknown>;
      answers.push(JSON.stringify(body).replaceAll("payrolx", "payroll"));
      expect(response.status).toBe(404);
    }
    expect(answers[0]).toBe(answers[1]);
  });

  test.each(["/v1/runs", "/v1/plan"])(
    "%s of a hidden pipeline and of a missing one is refused in the same words",
    async (path) => {
      const { call } = as("runner", ["nightly", "payrol"]);
      const answers = [];
      // The one that is granted and missing, a letter from the hidden one, does not give its name away either.
      for (const pipeline of ["payroll", "payrolx", "payrol"]) {
        const response = await call(path, { json: { pipeline } });
        expect(response.status).toBe(404);
        const { detail } = (await response.json()) as { detail: string };
        answers.push(detail.replace(new RegExp(`${pipeline}\\b`), "NAME"));
      }
      expect(new Set(answers).size).toBe(1);
    },
  );

  test("learns which right is missing on what it may see", async () => {
    const { call } = as("viewer", ["nightly"]);
    for (const [path, right] of [
      ["/v1/runs/run-nightly/cancel", "runs:cancel"],
      ["/v1/runs", "runs:start"],
    ] as const) {
      const response = await call(path, { json: path === "/v1/runs" ? { pipeline: "nightly" } : {} });
      expect(response.status).toBe(403);
      expect(((await response.json()) as { detail: string }).detail).toContain(
        `this needs the right ${right}`,
      );
    }
  });

  test("whoami and can-i say what it has, and not what there is", async () => {
    const { call } = as("runner", ["nightly"]);
    expect(await (await call("/v1/access/whoami")).json()).toEqual({
      name: "ci",
      groups: [],
      grants: [{ role: "runner", pipelines: ["nightly"] }],
    });
    const ask = async (query: string) =>
      ((await (await call(`/v1/access/can-i?right=runs:start${query}`)).json()) as { allowed: boolean })
        .allowed;
    expect(await ask("&pipeline=nightly")).toBe(true);
    expect(await ask("&pipeline=payroll")).toBe(false);
    expect(await ask("&pipeline=no-such")).toBe(false);
    expect(await ask("")).toBe(false);
  });
});
