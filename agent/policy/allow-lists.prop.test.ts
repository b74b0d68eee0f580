import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ResourcesSpec } from "../../shared/model/spec.ts";
import type { OfferOwners } from "../../shared/wire/offer-owners.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { offerOf } from "../agent.fixture.ts";
import { type Asked, explainRules, RULES, type RuleName } from "./allow-lists.ts";
import { parseRules } from "./parse-rules.ts";
import { matches } from "./pattern.ts";
import { OPEN, siteRules } from "./policy.fixture.ts";

const NIGHT = Date.UTC(2026, 10, 25, 2, 0);
/** `**` has a meaning of its own in commands. */
const word = fc.stringMatching(/^[a-z*.]{1,6}$/).filter((text) => text !== "**");
const name = fc.stringMatching(/^[a-z]{1,5}$/);

const asked: fc.Arbitrary<Asked> = fc
  .record({
    pipeline: name,
    argv: fc.array(word, { minLength: 1, maxLength: 4 }),
    env: fc.dictionary(name, word, { maxKeys: 3, noNullPrototype: true }),
    files: fc.dictionary(name, word, { maxKeys: 3, noNullPrototype: true }),
    reads: fc.uniqueArray(name, { maxLength: 3 }),
    writes: fc.uniqueArray(name, { maxLength: 3 }),
    allow: fc.uniqueArray(fc.constantFrom("db.test:5432", "api.test:443", "10.0.0.1:22"), { maxLength: 3 }),
    timeoutMs: fc.integer({ min: 1, max: 100_000 }),
  })
  .map(({ pipeline, argv, env, files, reads, writes, allow, timeoutMs }) => ({
    ...offerOf(),
    pipeline,
    files,
    step: stepSpec("fit", {
      executor: { kind: "process", argv },
      ...{ env, reads, writes, timeoutMs },
      ...(allow.length > 0 ? { network: { allow } } : {}),
    }),
    datasets: [...new Set([...reads, ...writes])].map((dataset) => ({
      name: dataset,
      classification: "internal" as const,
    })),
  }));

const forbidden = (rules: object, offer: Asked): string[] =>
  explainRules(siteRules({ ...rules }), offer, NIGHT)
    .filter(({ allowed }) => !allowed)
    .map(({ rule }) => rule);

describe("a site's policy", () => {
  test("that names nothing allows no step, and says each thing that it does not allow", () => {
    fc.assert(
      fc.property(asked, (offer) => {
        const { step, files } = offer;
        const expected: RuleName[] = ["pipelines", "executors", "commands"];
        if (Object.keys(files).length > 0) expected.push("files");
        if (Object.keys(step.env).length > 0) expected.push("env");
        if (step.reads.length + step.writes.length > 0) expected.push("datasets");
        if (step.network) expected.push("egress");
        expect(forbidden({}, offer)).toEqual(expected);
      }),
    );
  });

  test("that allows everything allows every step", () => {
    fc.assert(
      fc.property(asked, (offer) => {
        expect(forbidden(OPEN, offer)).toEqual([]);
      }),
    );
  });

  test("that names exactly what a step asks for allows it, and without any one of the names does not", () => {
    fc.assert(
      fc.property(asked, fc.nat(), (offer, pick) => {
        const { step, files, pipeline } = offer;
        const argv = step.executor.kind === "process" ? step.executor.argv : [];
        const lists: Record<string, unknown[]> = {
          pipelines: [pipeline],
          executors: ["process"],
          commands: [argv],
          files: Object.keys(files),
          env: Object.keys(step.env),
          datasets: [
            ...step.writes.map((dataset) => ({ name: dataset, access: "read-write" })),
            ...step.reads.filter((dataset) => !step.writes.includes(dataset)),
          ],
          egress: step.network?.allow ?? [],
        };
        expect(forbidden(lists, offer)).toEqual([]);
        const full = Object.entries(lists).filter(([, entries]) => entries.length > 0);
        const [rule, entries] = full[pick % full.length]!;
        const without = { ...lists, [rule]: entries.slice(1) };
        expect(forbidden(without, offer)).toEqual([rule]);
      }),
    );
  });

  test("of two that differ in a further entry, the longer one allows at least as much", () => {
    fc.assert(
      fc.property(asked, fc.array(word, { minLength: 1, maxLength: 3 }), (offer, extra) => {
        const short = { pipelines: ["a*"], executors: ["process"], commands: [["a*", "**"]] };
        const long = {
          pipelines: [...short.pipelines, extra[0]],
          executors: [...short.executors, ...extra],
          commands: [...short.commands, extra],
        };
        for (const rule of forbidden(long, offer)) expect(forbidden(short, offer)).toContain(rule);
      }),
    );
  });

  test("answers by every rule, in one order, and with a bounded text", () => {
    fc.assert(
      fc.property(asked, fc.string({ minLength: 500, maxLength: 2_000 }), (offer, long) => {
        const step = { ...offer.step, executor: { kind: "process" as const, argv: [long] } };
        const verdicts = explainRules(siteRules(), { ...offer, step }, NIGHT);
        expect(verdicts.map(({ rule }) => rule)).toEqual(RULES);
        for (const { message } of verdicts) expect(message.length).toBeLessThan(260);
      }),
    );
  });
});

describe("the text of a policy", () => {
  const line = fc.oneof(
    fc.constantFrom(
      "version: 1",
      "pipelines: [a]",
      "commands:",
      "  - [a, '**']",
      "hours:",
      "datasets: *x",
      "env: &x",
    ),
    fc.string({ maxLength: 30 }),
  );
  test("is rules, or a reason with its place, whatever is in it", () => {
    fc.assert(
      fc.property(fc.array(line, { maxLength: 12 }), (lines) => {
        let reason = "";
        try {
          expect(parseRules("policy.yaml", lines.join("\n")).version).toBe(1);
        } catch (thrown) {
          expect(thrown).toMatchObject({ code: "request.invalid" });
          reason = (thrown as Error).message;
        }
        if (reason !== "") expect(reason).toMatch(/policy\.yaml:\d+:\d+: \S/);
      }),
      { numRuns: 1_000 },
    );
  });
});

describe("a pattern", () => {
  test("means what the same regular expression means", () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[ab*]{0,8}$/), fc.stringMatching(/^[ab*]{0,10}$/), (pattern, text) => {
        const expression = new RegExp(`^${pattern.replaceAll("*", "[^]*")}$`);
        expect(matches(pattern, text)).toBe(expression.test(text));
      }),
      { numRuns: 2_000 },
    );
  });

  test("that is made to take long takes no long time", () => {
    const text = "a".repeat(100_000);
    expect(matches(`${"*a".repeat(20)}b`, text)).toBe(false);
  });
});

describe.each<[RuleName, object, Partial<Asked> & { step: Asked["step"] }, boolean]>([
  ["files", { files: [{ path: "a.mjs", sha256: `sha256:${"0".repeat(64)}` }] }, withFile("x"), false],
  [
    "files",
    {
      files: [
        {
          path: "a.mjs",
          sha256: "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        },
      ],
    },
    withFile("x"),
    true,
  ],
  ["datasets", { datasets: ["d"] }, reading("internal"), true],
  ["datasets", { datasets: [{ name: "d", classification: "restricted" }] }, reading("internal"), false],
  ["datasets", { datasets: [{ name: "d", classification: "internal" }] }, reading("internal"), true],
  ["datasets", { datasets: ["d"] }, { step: stepSpec("fit", { writes: ["d"] }) }, false],
  ["datasets", { datasets: ["d", { name: "*", access: "read-write" }] }, writing("d"), false],
  ["datasets", { datasets: ["d", { name: "*", access: "read-write" }] }, writing("e"), true],
  ["egress", { egress: [] }, { step: stepSpec("fit") }, true],
  ["egress", { egress: null }, { step: letOut("db.test:5432") }, false],
  ["egress", { egress: ["db.test:5432"] }, { step: letOut("db.test:5432") }, true],
  ["egress", { egress: ["db.test:5432"] }, { step: letOut("db.test:5432", "evil.test:443") }, false],
  ["egress", { egress: ["*.test:443"] }, { step: letOut("evil.test:443") }, true],
  ["maximum", { maximum: { timeout: "1m" } }, { step: stepSpec("fit", { timeoutMs: 60_001 }) }, false],
  ["maximum", { maximum: { timeout: "1m" } }, { step: stepSpec("fit", { timeoutMs: 60_000 }) }, true],
  ["maximum", { maximum: { outputBytes: 10 } }, { step: outputs(6, 5) }, false],
  ["maximum", { maximum: { outputBytes: 11 } }, { step: outputs(6, 5) }, true],
  ["owners", { owners: ["lab"] }, { ...running("a"), owners: owned("lab") }, true],
  ["owners", { owners: ["lab"] }, { ...running("a"), owners: owned("lab2") }, false],
  ["owners", { owners: ["lab", "stat*"] }, { ...running("a"), owners: owned("statistics") }, true],
  ["owners", { owners: ["*"] }, { ...running("a"), owners: owned(null) }, false],
  ["owners", { owners: ["*"] }, running("a"), false],
  ["owners", { owners: [] }, { ...running("a"), owners: owned("") }, false],
  ["owners", { owners: null }, { ...running("a"), owners: owned("lab") }, false],
  ["owners", {}, running("a"), true],
  ["datasets", { datasets: [{ name: "d", owner: "lab" }] }, owning({ d: "lab" }), true],
  ["datasets", { datasets: [{ name: "d", owner: "lab" }] }, owning({ d: "other" }), false],
  ["datasets", { datasets: [{ name: "d", owner: "lab" }] }, owning({ e: "lab" }), false],
  ["datasets", { datasets: [{ name: "*", owner: "*" }] }, owning({}, "constructor"), false],
  ["datasets", { datasets: [{ name: "d", owner: "lab" }] }, reading("internal"), false],
  ["maximum", { maximum: { memory: "1GiB" } }, { step: taking({ memoryBytes: 1024 ** 3 }) }, true],
  ["maximum", { maximum: { memory: "1GiB" } }, { step: taking({ memoryBytes: 1024 ** 3 + 1 }) }, false],
  ["maximum", { maximum: { memory: "1GiB" } }, { step: taking(undefined) }, false],
  ["maximum", { maximum: { memory: "1GiB" } }, { step: taking({ cpus: 1 }) }, false],
  [
    "maximum",
    { maximum: { memory: "1GiB" } },
    { step: stepSpec("fit", { executor: { kind: "noop" } }) },
    true,
  ],
  ["maximum", { maximum: { cpu: 0.5 } }, { step: taking({ cpus: 0.5 }) }, true],
  ["maximum", { maximum: { cpu: 0.5 } }, { step: taking({ cpus: 0.6 }) }, false],
  ["maximum", { maximum: { processes: 8 } }, { step: taking({ processes: 8 }) }, true],
  ["maximum", { maximum: { processes: 8 } }, { step: taking({ processes: 9 }) }, false],
  ["maximum", { maximum: { openFiles: 64 } }, { step: taking({ openFiles: 64 }) }, true],
  ["maximum", { maximum: { openFiles: 64 } }, { step: taking({ openFiles: 65 }) }, false],
  ["maximum", { maximum: { fileSize: "1MiB" } }, { step: taking({ fileSizeBytes: 1024 ** 2 }) }, true],
  ["maximum", { maximum: { fileSize: "1MiB" } }, { step: taking({ fileSizeBytes: 1024 ** 2 + 1 }) }, false],
  ["env", { env: ["MODE"] }, { step: stepSpec("fit", { env: { LD_PRELOAD: "/tmp/x.so" } }) }, false],
  ["commands", { commands: [["node", "a.mjs"]] }, running("node", "a.mjs"), true],
  ["commands", { commands: [["node", "a.mjs"]] }, running("node", "a.mjs", "--eval"), false],
  ["commands", { commands: [["node", "a.mjs"]] }, running("node"), false],
  ["commands", { commands: [["node", "a.mjs", "**"]] }, running("node", "a.mjs"), true],
  ["commands", { commands: [["node", "a.mjs", "**"]] }, running("node", "a.mjs", "-x", "y"), true],
  ["commands", { commands: [["node", "*.mjs"]] }, running("node", "-e*.mjs"), true],
  ["hours", { hours: [{ from: "20:00", to: "06:00", zone: "UTC" }] }, running("a"), true],
  ["hours", { hours: [{ from: "08:00", to: "18:00", zone: "UTC" }] }, running("a"), false],
])("rule %s with %j", (rule, rules, change, expected) => {
  test(`${expected ? "allows" : "forbids"} what it should`, () => {
    const offer = { ...offerOf(), pipeline: "p", files: {}, datasets: [], ...change };
    const verdict = explainRules(siteRules({ ...OPEN, ...rules }), offer, NIGHT).find(
      (found) => found.rule === rule,
    );
    expect(verdict?.allowed).toBe(expected);
  });
});

function owned(pipeline: string | null): OfferOwners {
  return { pipeline, datasets: {} };
}
function owning(datasets: Record<string, string>, name = "d") {
  const step = stepSpec("fit", { reads: [name] });
  const classification = "internal" as const;
  return { step, datasets: [{ name, classification }], owners: { pipeline: "lab", datasets } };
}
function taking(resources: ResourcesSpec | undefined) {
  return stepSpec("fit", {
    executor: { kind: "process", argv: ["a"] },
    ...(resources === undefined ? {} : { resources }),
  });
}
function withFile(content: string) {
  return { step: stepSpec("fit"), files: { "a.mjs": content } };
}
function reading(classification: "internal") {
  return { step: stepSpec("fit", { reads: ["d"] }), datasets: [{ name: "d", classification }] };
}
function writing(dataset: string) {
  return { step: stepSpec("fit", { writes: [dataset] }) };
}
function outputs(...sizes: number[]) {
  const named = sizes.map((maxBytes, index) => [`o${index}`, { type: "text" as const, maxBytes }]);
  return stepSpec("fit", { outputs: Object.fromEntries(named) });
}
function running(...argv: string[]) {
  return { step: stepSpec("fit", { executor: { kind: "process", argv } }) };
}

function letOut(...allow: string[]): Asked["step"] {
  return stepSpec("fit", { network: { allow } });
}

describe("a container", () => {
  const container = (change: object, digest = "a"): Asked => ({
    ...offerOf(),
    pipeline: "p",
    files: {},
    step: stepSpec("fit", {
      executor: { kind: "container", image: `stats@sha256:${digest.repeat(64)}`, ...change },
    }),
    datasets: [],
  });

  test("is allowed by its digest, whatever its name, and with it what it runs by itself", () => {
    expect(forbidden({ ...OPEN, commands: [] }, container({}))).toEqual([]);
    expect(forbidden(OPEN, container({}, "b"))).toEqual(["images"]);
    expect(forbidden({ ...OPEN, images: [] }, container({}))).toEqual(["images"]);
    expect(forbidden({ ...OPEN, executors: ["process"] }, container({}))).toEqual(["executors"]);
  });

  test("is given no command and no argument that is not among the commands", () => {
    const rules = { ...OPEN, commands: [["fit", "--fast"], ["--slow"]] };
    expect(forbidden(rules, container({ command: ["fit", "--fast"] }))).toEqual([]);
    expect(forbidden(rules, container({ command: ["fit"], args: ["--fast"] }))).toEqual([]);
    expect(forbidden(rules, container({ args: ["--slow"] }))).toEqual([]);
    expect(forbidden(rules, container({ command: ["sh"] }))).toEqual(["commands"]);
    expect(forbidden(rules, container({ args: ["--fast"] }))).toEqual(["commands"]);
  });
});
