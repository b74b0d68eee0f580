/** Who calls. One token with every right today; roles take this port's place later. */
import { createHash, timingSafeEqual } from "node:crypto";
import { InsituError } from "../../shared/errors.ts";

export interface Access {
  /** The caller's name, for the record of who did what; null when the token is not known. */
  authenticate(token: string): string | null;
}

/** Digests of equal length are compared, so neither the time nor the length of a guess tells anything. */
export function tokenAccess(token: string, name = "operator"): Access {
  const expected = sha256(token);
  return { authenticate: (given) => (timingSafeEqual(sha256(given), expected) ? name : null) };
}

/** @throws InsituError `auth.missing` */
export function authenticate(access: Access, authorization: string | undefined): string {
  const token = /^Bearer +([\x21-\x7e]+) *$/i.exec(authorization ?? "")?.[1];
  const name = token === undefined ? null : access.authenticate(token);
  if (name !== null) return name;
  const why =
    token === undefined ? "there is no bearer token in the request" : "the bearer token is not known";
  throw new InsituError(
    "auth.missing",
    `${why}; send Authorization: Bearer <token>, see context.json of the server`,
  );
}

function sha256(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
