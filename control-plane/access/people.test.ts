import { describe, expect, test } from "vitest";
import { GROUPS_MAX, parseRoleRule, personOf, principalOf } from "./people.ts";

const from = { issuer: "https://id.example.org", groupsClaim: "groups" };

describe("a person", () => {
  test("is known by the subject; the address is for people to read, and only when it is theirs", () => {
    const claims = {
      sub: "248",
      email: "ada@example.org",
      preferred_username: "ada",
      groups: ["b", "a", "a"],
    };
    expect(personOf(claims, from)).toEqual({
      issuer: from.issuer,
      subject: "248",
      display: "ada@example.org",
      groups: ["a", "b"],
    });
    expect(personOf({ ...claims, email_verified: false }, from).display).toBe("ada");
    expect(personOf({ sub: "248" }, from)).toMatchObject({ display: "248", groups: [] });
    expect(personOf({ sub: "248", name: "A\u202e\u0000da\n" }, from).display).toBe("Ada");
  });

  test.each<[string, Record<string, unknown>]>([
    ["no subject", {}],
    ["an empty subject", { sub: "" }],
    ["a subject with a line in it", { sub: "a\nb" }],
    ["a subject longer than the standard has it", { sub: "a".repeat(256) }],
    ["groups that are not names", { sub: "1", groups: [{ id: 1 }] }],
    ["groups that are no list", { sub: "1", groups: { a: true } }],
    ["groups without a name", { sub: "1", groups: [""] }],
    ["too many groups", { sub: "1", groups: Array.from({ length: GROUPS_MAX + 1 }, (_, i) => `g${i}`) }],
    ["groups that are kept elsewhere", { sub: "1", _claim_names: { groups: "src1" } }],
  ])("is refused for %s: what is left out could forbid something", (_what, claims) => {
    expect(() => personOf(claims, from)).toThrow(expect.objectContaining({ code: "auth.missing" }));
  });

  test("takes groups from the claim that was named, and from no prototype", () => {
    expect(personOf({ sub: "1", roles: "ops" }, { ...from, groupsClaim: "roles" }).groups).toEqual(["ops"]);
    expect(personOf({ sub: "1" }, { ...from, groupsClaim: "constructor" }).groups).toEqual([]);
  });

  test("has the grants of their groups and no others", () => {
    const rules = [parseRoleRule("ops=admin"), parseRoleRule("cn=sci,dc=example = runner @ nightly, weekly")];
    const person = personOf({ sub: "7", groups: ["cn=sci,dc=example", "op"] }, from);
    expect(principalOf(person, rules)).toEqual({
      name: "oidc:7",
      display: "7",
      groups: ["cn=sci,dc=example", "op"],
      grants: [{ role: "runner", pipelines: ["nightly", "weekly"] }],
    });
  });
});

test.each(["", "ops", "=admin", "ops=", "ops=root", "ops=admin@", "ops=admin@a@b", "ops=runner@Not A Name"])(
  "%j is no rule",
  (text) => {
    expect(() => parseRoleRule(text)).toThrow(/cannot be used/);
  },
);
