/** The attacker is the control plane: it signs offers, passes signatures on, and wants something else to run. */
import { generateKeyPairSync } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { digestOf } from "../../shared/model/canonical.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import { pipelineTree } from "../../shared/provenance/signed-pipeline.ts";
import { Offer } from "../../shared/wire/attempt.ts";
import { author } from "../../test/support/signing.ts";
import { pipelineSpec, stepSpec } from "../../test/support/specs.ts";
import { offerOf } from "../agent.fixture.ts";
import { explainRules } from "./allow-lists.ts";
import { OPEN, siteRules } from "./policy.fixture.ts";

const NOW_MS = Date.UTC(2026, 10, 25, 12, 0);
const DAY_MS = 86_400_000;
const ada = author();
const ci = author("p256");
const stranger = author();
const rules = siteRules({
  ...OPEN,
  signedPipelines: {
    keys: [
      { name: "ada", publicKey: ada.publicPem, pipelines: ["nightly*"] },
      { name: "ci", publicKey: ci.publicPem, pipelines: ["weekly"] },
    ],
    maxAge: "90d",
  },
});

const extract = stepSpec("extract", {
  executor: { kind: "process", argv: ["node", "extract.mjs"] },
  outputs: { rows: { type: "json", maxBytes: 20 } },
});
const fit = stepSpec("fit", {
  needs: ["extract"],
  executor: { kind: "process", argv: ["node", "fit.mjs"] },
  env: { MODE: "strict" },
  files: ["fit.mjs"],
  reads: ["patients"],
  environments: ["site"],
  timeoutMs: 1_000,
});
const other = stepSpec("other", { executor: { kind: "process", argv: ["rm", "-r", "scratch"] } });
const nightly = pipelineSpec("nightly", [extract, fit, other], {
  params: { year: { type: "number" }, region: { type: "string", enum: ["north", "south"] } },
  files: { "fit.mjs": "fit()", "unused.mjs": "0" },
});
const signedLately = { signedAtMs: NOW_MS - DAY_MS, expiresAtMs: NOW_MS + DAY_MS };

/** What an honest control plane makes of it. */
function offered(spec: PipelineSpec, envelopes: Envelope[], change: Partial<Offer> = {}): Offer {
  const step = spec.steps[1]!;
  return offerOf({
    lease: { runId: "run-1", stepId: step.id, attempt: 1, epoch: 1 },
    environment: "site",
    pipeline: spec.name,
    version: digestOf(spec),
    step,
    files: { "fit.mjs": "fit()" },
    params: { year: 2025, region: "north" },
    inputs: { extract: { rows: { type: "json", digest: digestOf([1]), bytes: 3, text: "[1]" } } },
    traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01`,
    signed: { envelopes, ...pipelineTree(spec).provenStep(step.id)! },
    ...change,
  });
}

function verdict(offer: Offer, nowMs = NOW_MS): string {
  // As it comes over the wire.
  const received = Offer.parse(JSON.parse(JSON.stringify(offer)));
  return explainRules(rules, received, nowMs).find(({ rule }) => rule === "signedPipelines")!.message;
}

const honest = offered(nightly, [ada.seal(nightly, signedLately)]);
const { signed } = honest;

describe("a site that runs signed pipelines alone", () => {
  test("takes a step as it was signed, by either kind of key, beside signatures that it does not know", () => {
    expect(verdict(honest)).toBe("allowed");
    const weekly = { ...nightly, name: "weekly" };
    const both = [stranger.seal(weekly, signedLately), ci.seal(weekly, signedLately)];
    expect(verdict(offered(weekly, both))).toBe("allowed");
  });

  test.each<[string, Partial<Offer>, RegExp]>([
    ["the signature taken away", { signed: undefined }, /pipeline nightly is not signed/],
    [
      "another command",
      { step: { ...fit, executor: { kind: "process", argv: ["curl", "evil"] } } },
      /not as it was/,
    ],
    [
      "one more argument",
      { step: { ...fit, executor: { kind: "process", argv: ["node", "fit.mjs", "-x"] } } },
      /not as/,
    ],
    [
      "another variable",
      { step: { ...fit, env: { MODE: "strict", NODE_OPTIONS: "--import x" } } },
      /not as it was/,
    ],
    ["another value of a variable", { step: { ...fit, env: { MODE: "lax" } } }, /not as it was signed/],
    ["another dataset", { step: { ...fit, reads: ["payroll"] } }, /not as it was signed/],
    ["a dataset to write", { step: { ...fit, writes: ["patients"] } }, /not as it was signed/],
    ["a way out", { step: { ...fit, network: { allow: ["evil.test:443"] } } }, /not as it was signed/],
    ["a secret", { step: { ...fit, secrets: { KEY: { name: "key", as: "env" } } } }, /not as it was signed/],
    ["more time", { step: { ...fit, timeoutMs: 2_000 } }, /not as it was signed/],
    [
      "an output that leaves",
      { step: { ...fit, outputs: { all: { type: "text", maxBytes: 9 } } } },
      /not as it was/,
    ],
    ["another content of a file", { files: { "fit.mjs": "evil()" } }, /not as it was signed/],
    ["one more file", { files: { "fit.mjs": "fit()", "node_modules/x.js": "" } }, /not as it was signed/],
    ["no file", { files: {} }, /not as it was signed/],
    ["another step of it under this one's proof", { step: other }, /not as it was signed/],
    ["another version", { version: digestOf("v2") }, /what is signed is pipeline nightly in version sha256:/],
    ["another name", { pipeline: "nightly-2" }, /what is signed is pipeline nightly in version/],
    ["another site", { environment: "cloud" }, /step fit was not signed for environment cloud/],
    [
      "a parameter more",
      { params: { year: 2025, region: "north", BASH_ENV: "/tmp/x" } },
      /BASH_ENV was not signed/,
    ],
    [
      "a parameter of another type",
      { params: { year: "$(evil)", region: "north" } },
      /parameter year has a value/,
    ],
    [
      "a value that is not on the list",
      { params: { year: 2025, region: "east" } },
      /parameter region has a value/,
    ],
    ["a parameter less", { params: { year: 2025 } }, /parameter region has no value/],
    [
      "a parameter of every object",
      { params: { year: 1, region: "north", constructor: "x" } },
      /constructor was not/,
    ],
    [
      "an input of a step that it does not need",
      { inputs: { other: honest.inputs.extract! } },
      /input other\/rows was/,
    ],
    [
      "an input that is no output",
      { inputs: { extract: { evil: honest.inputs.extract!.rows! } } },
      /extract\/evil/,
    ],
    [
      "an input that is larger than was signed",
      { inputs: { extract: { rows: { ...honest.inputs.extract!.rows!, text: `"${"x".repeat(20)}"` } } } },
      /extract\/rows is of another type or larger/,
    ],
    [
      "inputs that nobody declared, in the proof too",
      { signed: { ...signed!, inputs: { other: { rows: { type: "json", maxBytes: 9 } } } } },
      /not as it was signed/,
    ],
    [
      "the attempt of another step",
      { lease: { ...honest.lease, stepId: "other" } },
      /the attempt is of step other/,
    ],
    [
      "a run that is a path",
      { lease: { ...honest.lease, runId: "../../home" } },
      /the run has an id that is none/,
    ],
    ["a trace that is a command", { traceparent: "$(evil)" }, /its traceparent is none/],
    [
      "a signature of nobody",
      { signed: { ...signed!, envelopes: [stranger.seal(nightly, signedLately)] } },
      /no signature/,
    ],
    [
      "a stranger's signature under a trusted id",
      { signed: { ...signed!, envelopes: [renamed(stranger.seal(nightly, signedLately), ada.id)] } },
      /a signature by key sha256:\w+ is not valid/,
    ],
    [
      "a trusted key that may sign other pipelines",
      { signed: { ...signed!, envelopes: [ci.seal(nightly, signedLately)] } },
      /key sha256:\w+ may not sign pipeline nightly here/,
    ],
    ["a path of another tree", { signed: { ...signed!, path: [] } }, /not as it was signed/],
    ["another place in the tree", { signed: { ...signed!, index: 0 } }, /not as it was signed/],
  ])("refuses %s", (_what, change, reason) => {
    const changed = { ...honest, ...change };
    if (changed.signed === undefined) delete changed.signed;
    expect(verdict(changed)).toMatch(reason);
  });

  test("takes nothing that differs in what is started, whatever is put anywhere into an offer", () => {
    const property = fc.property(
      fc.infiniteStream(fc.nat()),
      fc.jsonValue({ maxDepth: 2 }),
      (picks, value) => {
        const received = Offer.safeParse(changedSomewhere(honest, picks, value));
        if (!received.success) return;
        const changed = received.data;
        if (verdict(changed) !== "allowed") return;
        for (const field of ["pipeline", "version", "step", "files", "environment"] as const)
          expect(changed[field]).toEqual(honest[field]);
        expect(Object.keys(changed.params).sort()).toEqual(["region", "year"]);
        expect([
          typeof changed.params.year,
          ["north", "south"].includes(String(changed.params.region)),
        ]).toEqual(["number", true]);
      },
    );
    fc.assert(property, { numRuns: 2_000 });
  });

  test("refuses a step whose whole tree was made anew: the root is signed", () => {
    const evil = { ...nightly, steps: [extract, { ...fit, reads: ["payroll"] }, other] };
    const [envelope] = signed!.envelopes;
    expect(verdict(offered(evil, [envelope!], { version: honest.version }))).toMatch(/not as it was signed/);
    const payload = JSON.parse(Buffer.from(envelope!.payload, "base64").toString()) as object;
    const lie = { ...payload, root: pipelineTree(evil).root, version: digestOf(evil) };
    const forged = { ...envelope!, payload: Buffer.from(JSON.stringify(lie)).toString("base64") };
    expect(verdict(offered(evil, [forged]))).toMatch(/is not valid/);
  });

  test("refuses what the key has signed for something else than a pipeline", () => {
    const [envelope] = signed!.envelopes;
    const renamedType = { ...envelope!, payloadType: "application/vnd.in-toto+json" };
    expect(verdict(offered(nightly, [renamedType]))).toMatch(/is not valid/);
  });

  test("refuses an old version again once its signature has expired, or is older than the site allows", () => {
    expect(verdict(honest, signedLately.expiresAtMs - 1)).toBe("allowed");
    expect(verdict(honest, signedLately.expiresAtMs)).toMatch(/has expired at 2026-11-26T12:00:00/);
    const lasting = offered(nightly, [ada.seal(nightly, { signedAtMs: NOW_MS })]);
    expect(verdict(lasting, NOW_MS + 90 * DAY_MS)).toBe("allowed");
    expect(verdict(lasting, NOW_MS + 91 * DAY_MS)).toMatch(/is of 2026-11-25T12:00:00.000Z, older than 90d/);
  });

  test("takes it by a second signature when the first has expired", () => {
    const stale = ada.seal(nightly, { signedAtMs: NOW_MS - DAY_MS, expiresAtMs: NOW_MS - 1 });
    expect(verdict(offered(nightly, [stale]))).toMatch(/has expired/);
    expect(verdict(offered(nightly, [stale, ada.seal(nightly, signedLately)]))).toBe("allowed");
  });

  test("refuses everything while it trusts no key", () => {
    const none = siteRules({ ...OPEN, signedPipelines: { keys: [] } });
    const [, found] = explainRules(none, honest, NOW_MS);
    expect(found).toMatchObject({ rule: "signedPipelines", allowed: false });
  });
});

test.each([
  ["a private key", () => generatePrivate()],
  ["something else", () => "hello"],
])("a policy with %s for a public one is not used", (_what, pem) => {
  const policy = { keys: [{ name: "ada", publicKey: pem(), pipelines: ["*"] }] };
  expect(() => siteRules({ signedPipelines: policy })).toThrow(/a public key in PEM/);
});

test("a policy in which a key is there twice is not used: which of the two lists would hold?", () => {
  const entry = { name: "ada", publicKey: ada.publicPem, pipelines: ["a"] };
  const policy = { keys: [entry, { ...entry, pipelines: ["*"] }] };
  expect(() => siteRules({ signedPipelines: policy })).toThrow(/twice/);
});

/** With another value, or one more key, at one place of it. */
function changedSomewhere(whole: unknown, picks: Iterator<number>, value: unknown): unknown {
  const pick = (count: number): number => (picks.next().value ?? 0) % count;
  if (typeof whole !== "object" || whole === null || pick(8) === 0) return value;
  const keys = [...Object.keys(whole), "extra"];
  const key = keys[pick(keys.length)]!;
  const copy: Record<string, unknown> | unknown[] = Array.isArray(whole) ? [...whole] : { ...whole };
  const before = (whole as Record<string, unknown>)[key];
  (copy as Record<string, unknown>)[key] = changedSomewhere(before, picks, value);
  return copy;
}

function renamed(envelope: Envelope, keyid: string): Envelope {
  return { ...envelope, signatures: envelope.signatures.map(({ sig }) => ({ keyid, sig })) };
}

function generatePrivate(): string {
  const { privateKey } = generateKeyPairSync("ed25519");
  return privateKey.export({ type: "pkcs8", format: "pem" }).toString();
}
