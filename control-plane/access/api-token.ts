/** The server's own token, for whoever may read its directory: it may do all, and makes tokens for others. */
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { newSecret } from "../../shared/system.ts";
import { loadOrCreateSecret } from "./secret-file.ts";

export interface ApiToken {
  /** For the local context file. Not to be logged. */
  readonly token: string;
  /** It was made just now: nobody can have used it before. */
  readonly isNew: boolean;
}

const TOKEN_MIN_LENGTH = 32;

/** Keeps the token in `<directory>/api-token`. */
export async function loadOrCreateApiToken(directory: string): Promise<ApiToken> {
  const path = join(directory, "api-token");
  const made = newSecret(32);
  const token = (await loadOrCreateSecret(path, () => `${made}\n`)).trim();
  if (token.length < TOKEN_MIN_LENGTH) {
    throw new InsituError(
      "internal",
      `the API token in ${path} is shorter than ${TOKEN_MIN_LENGTH} characters: delete the file, and a new one is made at the next start`,
    );
  }
  return { token, isNew: token === made };
}
