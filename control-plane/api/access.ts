/** The port behind which tokens are known, and what is read of a request for it. */
import { createHash, timingSafeEqual } from "node:crypto";
import type { Principal } from "../access/rights.ts";

export interface Access {
  /** Whose token it is; null when it is not known, or no longer good. @throws InsituError `store.unavailable` */
  authenticate(token: string): Promise<Principal | null>;
}

/** One token with every right. Digests of equal length are compared, so neither time nor length tells of a guess. */
export function tokenAccess(token: string, name = "operator"): Access {
  const expected = sha256(token);
  const principal: Principal = { name, grants: [{ role: "admin", pipelines: null }], local: true };
  return {
    authenticate: async (given) => (timingSafeEqual(sha256(given), expected) ? principal : null),
  };
}

/** The first that knows the token says who calls: the server's own token works while the store does not answer. */
export function anyAccess(...sources: readonly Access[]): Access {
  return {
    async authenticate(token) {
      for (const source of sources) {
        const principal = await source.authenticate(token);
        if (principal !== null) return principal;
      }
      return null;
    },
  };
}

/** The token in an Authorization header, if it holds one. */
export function bearerOf(authorization: string | undefined): string | undefined {
  return /^Bearer +([\x21-\x7e]+) *$/i.exec(authorization ?? "")?.[1];
}

function sha256(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
