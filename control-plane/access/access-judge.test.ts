/** What people may do by roles and by rules, asked of the real Cedar. */
import fc from "fast-check";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import type { AccessPolicySpec, PipelineSpec } from "../../shared/model/spec.ts";
import { type AccessFacts, AccessJudge } from "./access-judge.ts";
import { ruleFaults } from "./cedar-access.ts";
import { may, PIPELINE_RIGHTS, type Principal, RIGHTS, type Right, ROLES, type Role } from "./rights.ts";

const pipeline = (name: string, owner?: string) =>
  ({ name, ...(owner === undefined ? {} : { owner }) }) as PipelineSpec;

/** Resources as a test sets them; each change is seen at once. */
class World implements AccessFacts {
  revision = 0;
  rules: Record<string, string> = {};
  known = [pipeline("payroll", "payroll"), pipeline("nightly", "lab"), pipeline("loose")];
  places: Record<string, string[]> = { payroll: ["hq"], nightly: ["clinic", "hq"] };
  readonly judge = new AccessJudge(this, pino({ level: "silent" }));

  set(rules: Record<string, string>): this {
    this.rules = rules;
    this.revision += 1;
    return this;
  }
  policies(): AccessPolicySpec[] {
    return Object.keys(this.rules).length === 0 ? [] : [{ name: "people", rules: this.rules }];
  }
  pipelines() {
    return new Map(this.known.map((spec) => [spec.name, spec]));
  }
  environments() {
    const labels = { network: "closed" };
    return [
      { name: "clinic", jurisdiction: "DE", labels },
      { name: "hq", jurisdiction: "FR", labels: {} },
    ];
  }
  factsOf(spec: PipelineSpec) {
    return { team: spec.owner ?? null, environments: this.places[spec.name] ?? [] };
  }
  ask(principal: Principal, right: Right, name?: string, kind: "pipeline" | "environment" = "pipeline") {
    const target = name === undefined ? null : { kind, name };
    return this.judge.decide({ principal, right, target });
  }
  says(...asked: Parameters<World["ask"]>) {
    return this.ask(...asked).verdict;
  }
}

function person(groups: string[] = [], role?: Role): Principal {
  return { name: "ada", groups, grants: role === undefined ? [] : [{ role, pipelines: null }] };
}

describe("a rule", () => {
  test("gives a group what no role of theirs gives, over the pipelines of a team and no others", () => {
    const world = new World().set({
      "payroll-runs": `permit (principal in Group::"payroll", action == Action::"runs:start", resource in Team::"payroll");`,
    });
    expect(world.says(person(["payroll"]), "runs:start", "payroll")).toBe("yes");
    expect(world.ask(person(["payroll"]), "runs:start", "payroll").because).toContain("people/payroll-runs");
    expect(world.says(person(["payroll"]), "runs:start", "nightly")).toBe("no");
    expect(world.says(person(["payroll"]), "runs:start", "loose")).toBe("no");
    expect(world.says(person(["payroll"]), "runs:start")).toBe("no");
    expect(world.says(person(["payroll"]), "runs:cancel", "payroll")).toBe("no");
    expect(world.says(person(["lab"]), "runs:start", "payroll")).toBe("no");
    expect(world.judge.reach(person(["payroll"]), "runs:start")).toEqual(["payroll"]);
    expect(world.judge.anywhere(person(["payroll"]), "runs:start", "pipeline")).toBe(true);
    expect(world.judge.anywhere(person(["lab"]), "runs:start", "pipeline")).toBe(false);
  });

  test("that forbids wins over every role, and over what another rule permits", () => {
    const world = new World().set({
      all: "permit (principal, action, resource);",
      clinic: `forbid (principal, action == Action::"runs:start", resource is Pipeline)
        when { resource.environments.contains(Environment::"clinic") }
        unless { principal in Group::"clinicians" };`,
    });
    for (const role of ROLES) expect(world.says(person([], role), "runs:start", "nightly"), role).toBe("no");
    expect(world.ask(person([], "admin"), "runs:start", "nightly").because).toBe(
      "rule people/clinic forbids it",
    );
    expect(world.says(person(["clinicians"], "runner"), "runs:start", "nightly")).toBe("yes");
    expect(world.says(person([], "runner"), "runs:start", "payroll")).toBe("yes");
    expect(world.judge.reach(person([], "admin"), "runs:start")).toEqual(["loose", "payroll"]);
  });

  test("speaks of sites by jurisdiction and label", () => {
    const world = new World().set({
      sites: `permit (principal in Group::"site-crew", action in [Action::"agents:admit", Action::"agents:revoke"], resource is Environment)
        when { resource.jurisdiction == "DE" && resource.hasTag("network") && resource.getTag("network") == "closed" };`,
    });
    expect(world.says(person(["site-crew"]), "agents:revoke", "clinic", "environment")).toBe("yes");
    expect(world.says(person(["site-crew"]), "agents:revoke", "hq", "environment")).toBe("no");
    expect(world.says(person(["site-crew"]), "agents:revoke", "no-such", "environment")).toBe("no");
    expect(world.judge.anywhere(person(["site-crew"]), "agents:revoke", "environment")).toBe(true);
  });

  test("holds from the moment that it is stored, and no longer than that", () => {
    const world = new World();
    const ask = () => world.says(person(["lab"]), "logs:read", "nightly");
    expect(ask()).toBe("no");
    world.set({ logs: `permit (principal in Group::"lab", action, resource in Team::"lab");` });
    expect(ask()).toBe("yes");
    world.known = world.known.map((spec) => pipeline(spec.name, "payroll"));
    world.revision += 1;
    expect(ask()).toBe("no");
    world.set({});
    expect(ask()).toBe("no");
    expect(world.judge.reach(person([], "viewer"), "runs:view")).toBeNull();
  });

  test("can ask for a second person", () => {
    const world = new World().set({
      "four-eyes": `forbid (principal, action == Action::"runs:resolve", resource) unless { context.approved };`,
    });
    expect(world.says(person([], "operator"), "runs:resolve", "payroll")).toBe("with-approval");
    expect(world.says(person([], "runner"), "runs:resolve", "payroll")).toBe("no");
    expect(world.judge.reach(person([], "operator"), "runs:resolve")).toEqual([]);
  });

  test("that is stored and cannot be used denies everything, but not to mend it", () => {
    const world = new World().set({ broken: "permit (principal, action, resource) whn { true };" });
    expect(world.says(person([], "admin"), "runs:view", "payroll")).toBe("no");
    expect(world.ask(person([], "admin"), "access:edit").because).toContain("people/broken");
    const local: Principal = { ...person([], "admin"), local: true };
    expect(world.says(local, "access:edit")).toBe("yes");
    expect(world.says(local, "runs:start", "payroll")).toBe("no");
  });

  test("that fails while it is evaluated denies, whatever the others say", () => {
    const world = new World().set({
      all: "permit (principal, action, resource);",
      overflow: `forbid (principal, action, resource) when { 9223372036854775807 + (if context.approved then 0 else 1) == 0 };`,
    });
    const { verdict, because } = world.ask(person([], "admin"), "runs:view", "payroll");
    expect([verdict, because]).toEqual(["no", expect.stringContaining("people/overflow")]);
    expect(world.judge.reach(person([], "admin"), "runs:view")).toEqual([]);
  });

  test("takes the making of rules from everybody but the server's own token", () => {
    const world = new World().set({ none: "forbid (principal, action, resource);" });
    for (const right of RIGHTS) expect(world.says(person([], "admin"), right), right).toBe("no");
    const local: Principal = { ...person([], "admin"), local: true };
    expect(RIGHTS.filter((right) => world.says(local, right) === "yes")).toEqual([
      "resources:view",
      "access:edit",
    ]);
  });
});

describe("where there are no rules", () => {
  test("roles decide as their table says", () => {
    const grant = fc.record({
      role: fc.constantFrom(...ROLES),
      pipelines: fc.option(fc.subarray(["payroll", "nightly", "x"]), { nil: null }),
    });
    const asked = fc.record({
      principal: fc.record({ name: fc.constant("ada"), grants: fc.array(grant, { maxLength: 3 }) }),
      right: fc.constantFrom(...RIGHTS),
      name: fc.option(fc.constantFrom("payroll", "nightly", "x"), { nil: null }),
    });
    const bare = new World();
    const idle = new World().set({
      idle: `permit (principal in Group::"nobody", action, resource);`,
    });
    fc.assert(
      fc.property(asked, ({ principal, right, name }) => {
        const over = PIPELINE_RIGHTS.includes(right) ? name : null;
        const expected = may(principal, right, over) ? "yes" : "no";
        expect(bare.says(principal, right, name ?? undefined)).toBe(expected);
        expect(idle.says(principal, right, name ?? undefined)).toBe(expected);
      }),
    );
  });
});

describe("a rule that cannot be used", () => {
  test.each([
    ["a typing error", "permit (principal, action, resource)\nwhn { true };", 2, /invalid policy condition/],
    ["two of them", "permit (principal, action, resource);\nforbid (principal, action, resource);", 2, /./],
    ["an unknown action", `permit (principal, action == Action::"runs:strat", resource);`, 1, /runs:strat/],
    [
      "an unknown attribute",
      "permit (principal, action, resource)\n\nwhen { resource.size > 3 };",
      3,
      /size/,
    ],
    ["a template", "permit (principal == ?principal, action, resource);", 1, /slot/],
    ["nothing", "// later", 1, /./],
    [
      "one that never applies",
      `forbid (principal, action == Action::"tokens:manage", resource is Pipeline);`,
      1,
      /./,
    ],
  ])("%s is found before it is stored, with its line", (_what, text, line, message) => {
    const [fault] = ruleFaults({ rules: { one: text } });
    expect(fault).toMatchObject({ rule: "one", line });
    expect(fault?.message).toMatch(message);
  });

  test("none of what the others are made of is one", () => {
    expect(ruleFaults({ rules: { one: "permit (principal, action, resource);" } })).toEqual([]);
  });
});
