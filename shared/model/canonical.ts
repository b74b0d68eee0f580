/** Canonical JSON (RFC 8785) and the digests that are made of it. */
import { createHash } from "node:crypto";

/**
 * The one text of a JSON value: no white space, keys in order of their UTF-16 code units, numbers as ECMAScript
 * prints them. Properties that are `undefined` are left out, as JSON.stringify does.
 *
 * @throws TypeError for what JSON cannot hold: NaN, infinities, lone surrogates, functions, bigints
 */
export function canonicalJson(value: unknown): string {
  if (value === null || typeof value === "boolean") return JSON.stringify(value);
  if (typeof value === "string") {
    if (!value.isWellFormed()) throw new TypeError("a string with a lone surrogate has no canonical JSON");
    return JSON.stringify(value);
  }
  if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new TypeError(`${value} has no canonical JSON`);
    return JSON.stringify(value);
  }
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value !== "object") throw new TypeError(`a ${typeof value} has no canonical JSON`);
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  // Code units, as the RFC asks; keys of one object are never equal.
  members.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([key, member]) => `${canonicalJson(key)}:${canonicalJson(member)}`).join(",")}}`;
}

/** `sha256:` and the hexadecimal SHA-256 of the canonical JSON in UTF-8. */
export function digestOf(value: unknown): string {
  return `sha256:${createHash("sha256").update(canonicalJson(value), "utf8").digest("hex")}`;
}
