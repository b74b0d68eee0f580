/**
 * People as an identity provider describes them, and the roles that their groups give. Pure.
 *
 * What cannot be understood refuses the sign-in: a group that is left out could be the one that forbids something.
 */
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { type Grant, type Principal, ROLES } from "./rights.ts";

export const Person = z.object({
  issuer: z.string(),
  /** Unique and never given again at its issuer. */
  subject: z.string(),
  display: z.string(),
  groups: z.array(z.string()),
});
export type Person = z.infer<typeof Person>;

/** Who is in `group` holds `grant`. */
export interface RoleRule {
  group: string;
  grant: Grant;
}

export const GROUPS_MAX = 1000;
const GROUP_MAX_CHARS = 256;
const DISPLAY_MAX_CHARS = 128;
/** OpenID Connect Core 1.0, section 2: at most 255 ASCII characters. Those that print, since logs show them. */
const SUBJECT = /^[\x21-\x7e]{1,255}$/;
const EMAIL = /^[^\s@]{1,64}@[^\s@]{1,190}$/;

/** @param claims of a checked ID token, with those of the userinfo endpoint over them. @throws `auth.missing` */
export function personOf(claims: Readonly<Record<string, unknown>>, from: PersonSource): Person {
  const { sub } = claims;
  if (typeof sub !== "string" || !SUBJECT.test(sub)) throw unclear("the subject is not one that we can keep");
  return {
    issuer: from.issuer,
    subject: sub,
    display: displayOf(claims, sub),
    groups: groupsOf(claims, from),
  };
}

export interface PersonSource {
  issuer: string;
  groupsClaim: string;
}

/** `oidc:` is in no token's name, so none of the two can be taken for the other. */
export function principalOf(person: Person, rules: readonly RoleRule[]): Principal {
  const { subject, display, groups } = person;
  const grants = rules.filter(({ group }) => groups.includes(group)).map(({ grant }) => grant);
  return { name: `oidc:${subject}`, display, groups, grants };
}

/**
 * `GROUP=ROLE`, or `GROUP=ROLE@PIPELINE,PIPELINE` for these pipelines alone. The group is what stands before the last
 * `=`: names of groups may hold one, as those of LDAP do.
 *
 * @throws InsituError `request.invalid`
 */
export function parseRoleRule(text: string): RoleRule {
  const at = text.lastIndexOf("=");
  const group = text.slice(0, Math.max(0, at)).trim();
  const [role = "", ...rest] = text.slice(at + 1).split("@");
  const known = ROLES.find((one) => one === role.trim());
  if (group === "" || rest.length > 1) throw wrongRule(text, "it is not GROUP=ROLE or GROUP=ROLE@PIPELINE,…");
  if (known === undefined)
    throw wrongRule(text, `there is no role "${role.trim()}"; there are ${ROLES.join(", ")}`);
  if (rest[0] === undefined) return { group, grant: { role: known, pipelines: null } };
  const pipelines = rest[0].split(",").map((name) => name.trim());
  const bad = pipelines.find((name) => !Name.safeParse(name).success);
  if (bad !== undefined) throw wrongRule(text, `"${bad}" is not the name of a pipeline`);
  return { group, grant: { role: known, pipelines } };
}

function wrongRule(text: string, why: string): InsituError {
  return new InsituError("request.invalid", `the role "${text}" cannot be used: ${why}`);
}

/** An address that the provider says is not verified could be anybody's. */
function displayOf(claims: Readonly<Record<string, unknown>>, subject: string): string {
  const { email, email_verified: verified, preferred_username: username, name } = claims;
  if (typeof email === "string" && verified !== false && EMAIL.test(email)) return printable(email);
  for (const text of [username, name])
    if (typeof text === "string" && text.trim() !== "") return printable(text);
  return subject;
}

function printable(text: string): string {
  return text
    .replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "")
    .trim()
    .slice(0, DISPLAY_MAX_CHARS);
}

function groupsOf(claims: Readonly<Record<string, unknown>>, { groupsClaim }: PersonSource): string[] {
  const { _claim_names: elsewhere } = claims;
  if (typeof elsewhere === "object" && elsewhere !== null && groupsClaim in elsewhere) {
    throw unclear(
      `the claim ${groupsClaim} is not in the token but elsewhere, as for people in very many groups; let the provider send only the groups that matter here`,
    );
  }
  const given = Object.hasOwn(claims, groupsClaim) ? claims[groupsClaim] : [];
  const groups: unknown = typeof given === "string" ? [given] : given;
  const parsed = z.array(z.string().min(1).max(GROUP_MAX_CHARS)).max(GROUPS_MAX).safeParse(groups);
  if (!parsed.success) {
    throw unclear(
      `the claim ${groupsClaim} is not a list of at most ${GROUPS_MAX} names of at most ${GROUP_MAX_CHARS} characters`,
    );
  }
  return [...new Set(parsed.data)].sort();
}

function unclear(why: string): InsituError {
  return new InsituError("auth.missing", `the identity provider's answer cannot be used: ${why}`);
}
