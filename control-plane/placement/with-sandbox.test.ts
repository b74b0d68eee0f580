import { expect, test } from "vitest";
import { explainRefusal } from "./choose.ts";
import { type BoxingAgent, withSandbox } from "./with-sandbox.ts";

const process = { kind: "process" as const, argv: ["true"] };
const boxing: BoxingAgent = {
  id: "hq/a",
  sandbox: { boxes: true, summary: "bubblewrap 0.8.0", unboxedUpTo: "internal" },
};
/** One that could box the step, and let it out to nobody or to everybody. */
const lettingOut: BoxingAgent = { id: "hq/d", sandbox: { ...boxing.sandbox!, letsOut: true } };
const container = { kind: "container" as const, image: `stats@sha256:${"a".repeat(64)}` };
const withImages: BoxingAgent = { id: "hq/e", sandbox: { ...boxing.sandbox!, runsContainers: true } };
const network = { allow: ["db.site.example:5432"] };
const without = (unboxedUpTo: string): BoxingAgent => ({
  id: "hq/b",
  sandbox: { boxes: false, summary: "none: bubblewrap is not installed", unboxedUpTo },
});
const silent: BoxingAgent = { id: "hq/c", sandbox: null };

function verdict(step: object, agents: readonly BoxingAgent[], classification = "confidential") {
  return withSandbox(
    [{ environment: "hq", allowed: true, reasons: [] }],
    { executor: process, reads: [], ...step },
    { classificationOf: () => classification as never, agentsOf: () => agents },
  );
}

test.each([
  // step, agents, class of what it reads, allowed
  [{}, [without("internal")], "confidential", true],
  [{ reads: ["d"] }, [without("internal")], "confidential", false],
  [{ reads: ["d"] }, [without("internal")], "internal", true],
  [{ reads: ["d"] }, [without("secret")], "secret", true],
  [{ reads: ["d"] }, [without("")], "public", false],
  [{ reads: ["d"] }, [without("a class of later")], "public", false],
  [{ reads: ["d"] }, [without("internal"), boxing], "secret", true],
  [{ reads: ["d"] }, [silent], "secret", true],
  [{ reads: ["d"] }, [], "secret", true],
  [{ sandbox: "required" }, [], "public", true],
  [{ sandbox: "required" }, [without("secret")], "public", false],
  [{ sandbox: "required" }, [silent], "public", false],
  [{ sandbox: "required" }, [silent, boxing], "public", true],
  [{ sandbox: "required", executor: { kind: "noop" } }, [without("public")], "public", true],
  [{ network }, [], "public", true],
  [{ network }, [silent], "public", false],
  [{ network }, [without("secret")], "public", false],
  [{ network }, [boxing], "public", false],
  [{ network }, [boxing, lettingOut], "public", true],
  [{ network, executor: { kind: "noop" } }, [boxing], "public", true],
  [{ executor: container }, [], "public", true],
  [{ executor: container }, [silent], "public", false],
  [{ executor: container }, [without("secret"), boxing], "public", false],
  [{ executor: container }, [boxing, withImages], "public", true],
  [{ executor: container, network }, [withImages, lettingOut], "public", false],
] as const)("%j with agents %j and %s data: %s", (step, agents, classification, allowed) => {
  expect(verdict(step, agents, classification)[0]?.allowed).toBe(allowed);
});

test("the reason names the agents and what they lack", () => {
  const verdicts = verdict({ reads: ["d"] }, [without("internal")]);
  const step = { id: "fit", reads: ["d"], writes: [], environments: [] };
  expect(explainRefusal(step, verdicts)).toMatch(
    /rule sandbox forbids it in hq .*data classed confidential.*hq\/b: none: bubblewrap is not installed/,
  );
});

test("the reason names where the step wants to be let out to", () => {
  const step = { id: "load", reads: [], writes: [], environments: [] };
  expect(explainRefusal(step, verdict({ network }, [boxing]))).toMatch(
    /no agent in hq lets steps out, and the step asks for db\.site\.example:5432 \(hq\/a: bubblewrap 0\.8\.0\)/,
  );
});

test("what policy forbids stays forbidden for its own reason", () => {
  const denied = [
    { environment: "hq", allowed: false, reasons: [{ policy: "residency", dataset: "d", message: "no" }] },
  ];
  const world = { classificationOf: () => "secret" as const, agentsOf: () => [without("")] };
  expect(withSandbox(denied, { executor: process, reads: ["d"] }, world)).toEqual(denied);
});

test("the reason says that nobody there runs container images", () => {
  const verdicts = verdict({ executor: container }, [boxing]);
  const step = { id: "fit", reads: [], writes: [], environments: [] };
  expect(explainRefusal(step, verdicts)).toMatch(/no agent in hq runs container images \(hq\/a/);
});
