/**
 * JWTs of NATS' operator mode, signed here: `@nats-io/jwt` calls itself unsupported and blocks for 47 ms a user.
 * Claims are those of version 2 (github.com/nats-io/jwt, v2).
 */
import { createHash } from "node:crypto";
import { encodeBase32, type Nkey } from "../../shared/wire/nkey.ts";

const HEADER = base64({ typ: "JWT", alg: "ed25519-nkey" });

export interface NatsClaims {
  /** Public key of whom it is about. */
  subject: string;
  name: string;
  /** Seconds since the Unix epoch. */
  issuedAtS: number;
  /** Seconds; without it, for ever. */
  expiresAtS?: number;
  /** The part that only NATS knows: permissions, limits, imports. */
  nats: Readonly<Record<string, unknown>> & { type: "operator" | "account" | "user" };
}

/** The same claims and key give the same text. */
export function signNatsJwt(claims: NatsClaims, issuer: Nkey): string {
  const { subject, name, issuedAtS, expiresAtS, nats } = claims;
  const body = {
    iat: issuedAtS,
    iss: issuer.publicKey,
    name,
    sub: subject,
    ...(expiresAtS === undefined ? {} : { exp: expiresAtS }),
    nats: { ...nats, version: 2 },
  };
  const jti = encodeBase32(createHash("sha256").update(JSON.stringify(body)).digest());
  const signed = `${HEADER}.${base64({ jti, ...body })}`;
  return `${signed}.${issuer.sign(Buffer.from(signed)).toString("base64url")}`;
}

function base64(value: unknown): string {
  return Buffer.from(JSON.stringify(value)).toString("base64url");
}
