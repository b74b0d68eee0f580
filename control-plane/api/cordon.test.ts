/** Cordon, drain and uncordon as the API has them. */
import { expect, test } from "vitest";
import { testApi } from "./api.fixture.ts";
import type { AgentView } from "./schemas.ts";

function plant() {
  const api = testApi();
  api.services.agentViews.push({ id: "hq/old", environment: "hq", name: "old" } as AgentView);
  return api;
}

const asked = { environment: "hq", name: "old", by: "operator" };

test.each<[string, object | undefined, object]>([
  ["cordon", { reason: "disk change" }, { ...asked, reason: "disk change", drain: null }],
  ["cordon", {}, { ...asked, reason: "", drain: null }],
  ["drain", {}, { ...asked, reason: "", drain: { once: false } }],
  ["drain", { withinMs: 0, once: true }, { ...asked, reason: "", drain: { withinMs: 0, once: true } }],
  ["uncordon", undefined, asked],
])("%s with %j is asked in the name of the caller", async (what, json, request) => {
  const { call, services } = plant();
  const path = `/v1/agents/hq/old/${what}`;
  const response = await call(path, json === undefined ? { method: "POST" } : { json });
  expect(response.status).toBe(200);
  expect(services.cordons).toEqual([request]);
});

test.each<[string, object, number, RegExp]>([
  ["old/drain", { once: true }, 400, /without a deadline nothing is ended/],
  ["old/drain", { withinMs: -1 }, 400, /withinMs/],
  ["old/drain", { withinMs: 8 * 24 * 3_600_000 }, 400, /withinMs/],
  ["old/cordon", { reason: "x".repeat(501) }, 400, /reason/],
  ["old/cordon", { until: "noon" }, 400, /until/],
  ["odl/cordon", {}, 404, /hq\/old/],
])("%s with %j is refused, and says why", async (path, json, status, why) => {
  const { call, services } = plant();
  const response = await call(`/v1/agents/hq/${path}`, { json });
  expect([response.status, await response.text()]).toEqual([status, expect.stringMatching(why)]);
  expect(services.cordons).toEqual([]);
});
