import { expect, test } from "vitest";
import type { PlanView } from "../api/schemas.ts";
import { planLines } from "./plan-lines.ts";
import { painter } from "./text.ts";

const verdict = (environment: string, reasons: string[] = [], agents = 1) => ({
  environment,
  allowed: reasons.length === 0,
  agents,
  reasons: reasons.map((message) => ({ policy: "holds", dataset: "d", message })),
});
const plan = (steps: PlanView["steps"], placeable = true): PlanView => ({
  pipeline: "penguins",
  version: `sha256:${"ab".repeat(32)}`,
  policyVersion: `sha256:${"cd".repeat(32)}`,
  placeable,
  steps,
});
const wide = { width: 100, paint: painter(false) };

test("a matrix says where each step may run; the same reason is said once for all its environments", () => {
  const environments = [
    verdict("dream"),
    verdict("hq", ["d is held by dream, not by hq"]),
    verdict("hq-2", ["d is held by dream, not by hq-2"]),
  ];
  const lines = planLines(plan([{ step: "count", reads: ["d"], writes: [], environments }]), wide);
  expect(lines).toContain("STEP   dream  hq  hq-2");
  expect(lines).toContain("count    ✓    ✗    ✗");
  expect(lines).toContain("    ✗ hq, hq-2: d is held by dream, not by these");
});

test("a step that may run nowhere is named as refused", () => {
  const step = { step: "pool", reads: [], writes: [], environments: [verdict("hq", ["no"])] };
  expect(planLines(plan([step], false), wide).at(-1)).toBe("Refused: no environment may run pool.");
});

test("an environment without an agent that a step depends on is said", () => {
  const step = {
    step: "a",
    reads: [],
    writes: [],
    environments: [verdict("hq", [], 0), verdict("dream", ["no"])],
  };
  expect(planLines(plan([step]), wide).join("\n")).toContain("No agent is connected at hq");
});

test("more environments than the terminal is wide become a list", () => {
  const environments = Array.from({ length: 40 }, (_, at) => verdict(`site-${at}`, at === 3 ? [] : ["no"]));
  const lines = planLines(plan([{ step: "a", reads: [], writes: [], environments }]), wide);
  expect(lines).toContain("a     ✓ site-3");
});
