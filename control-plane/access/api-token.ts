/** Who may call the HTTP API. Today one bearer token that may do all; roles put more principals behind the same port. */
import { createHash, timingSafeEqual } from "node:crypto";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { newSecret } from "../../shared/system.ts";
import { loadOrCreateSecret } from "./secret-file.ts";

export interface Principal {
  name: string;
  roles: readonly string[];
}

export interface Authenticator {
  /** The principal of an `Authorization` header, or undefined when it is missing or wrong. */
  authenticate(authorization: string | undefined): Principal | undefined;
}

export interface ApiToken extends Authenticator {
  /** For the local context file. Not to be logged. */
  readonly token: string;
}

const TOKEN_MIN_LENGTH = 32;

/** Keeps the token in `<directory>/api-token`. */
export async function loadOrCreateApiToken(directory: string): Promise<ApiToken> {
  const path = join(directory, "api-token");
  const token = (await loadOrCreateSecret(path, () => `${newSecret(32)}\n`)).trim();
  if (token.length < TOKEN_MIN_LENGTH) {
    throw new InsituError(
      "internal",
      `the API token in ${path} is shorter than ${TOKEN_MIN_LENGTH} characters: delete the file, and a new one is made at the next start`,
    );
  }
  const expected = digest(token);
  const principal: Principal = { name: "admin", roles: ["admin"] };
  return {
    token,
    authenticate(authorization) {
      const presented = /^Bearer +(\S+)$/i.exec(authorization ?? "")?.[1];
      if (presented === undefined) return undefined;
      // Digests have one length and tell nothing by the time a comparison takes.
      return timingSafeEqual(digest(presented), expected) ? principal : undefined;
    },
  };
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text, "utf8").digest();
}
