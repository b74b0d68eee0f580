/**
 * Accounts below an operator that somebody else runs: we were given a signing key of each, and sign users with it.
 * Accounts themselves are theirs to sign: we can tell no server of a revocation, so what agents are given ends soon.
 */
import { createHash, hkdfSync } from "node:crypto";
import { join } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import { isPublicNkey, makeNkey, type Nkey, nkeyOfSeed } from "../../shared/wire/nkey.ts";
import type { NatsAccounts } from "./nats-accounts.ts";
import * as claims from "./nats-claims.ts";
import { signNatsJwt } from "./nats-jwt.ts";
import type { AgentUser, NatsCredentials } from "./nats-operator.ts";
import { loadSecret, replaceSecret } from "./secret-file.ts";

const FILE = "nats-accounts.json";
/** Of what never changes: the same text at each start. */
const EPOCH_S = 1_700_000_000;
const PROBE_S = 60;

const Account = z.strictObject({
  account: z.string().refine((key) => isPublicNkey("account", key), "is not the public key of an account"),
  signingKey: z.string().refine(isSeed, "is not the seed of an account's signing key (SA…)"),
});

/** As it is given, and as it is kept. */
export const ImportedBook = z
  .strictObject({
    streams: Account,
    environments: z
      .record(Name, Account)
      .refine((all) => Object.keys(all).length > 0, "names no environment"),
  })
  .check(({ value: { streams, environments }, issues }) => {
    const all = [["streams", streams] as const, ...Object.entries(environments)];
    const refuse = (message: string): void =>
      void issues.push({ code: "custom", message, input: undefined, path: [] });
    for (const [name, { account, signingKey }] of all) {
      if (isSeed(signingKey) && nkeyOfSeed("account", signingKey).publicKey === account)
        refuse(`${name}: that is the account's own key, which is to stay with its owner: make a signing key`);
    }
    if (new Set(all.map(([, { account }]) => account)).size < all.length)
      refuse("an account is named twice: without one of its own, an environment is kept apart from nothing");
    if (new Set(all.map(([, { signingKey }]) => signingKey)).size < all.length)
      refuse("a signing key is named twice: each account has one of its own");
  });
export type ImportedBook = z.infer<typeof ImportedBook>;

export class ImportedAccounts implements NatsAccounts {
  readonly accountGeneration = 1;
  readonly #book: ImportedBook;

  constructor(book: ImportedBook) {
    this.#book = book;
  }

  get controlPlane(): string {
    return this.#book.streams.account;
  }

  has(environment: string): boolean {
    return Object.hasOwn(this.#book.environments, environment);
  }

  accountOf(environment: string): string {
    return this.#of(environment).account;
  }

  agentJwt({ environment, name, userKey, issuedAtS, expiresAtS }: AgentUser): string {
    const { account, signingKey } = this.#of(environment);
    const about = claims.agentUserClaims({ agent: `${environment}/${name}`, name, account });
    return signNatsJwt(
      { subject: userKey, issuedAtS, expiresAtS, ...about },
      nkeyOfSeed("account", signingKey),
    );
  }

  controlPlaneUser(): NatsCredentials {
    const { account, signingKey } = this.#book.streams;
    const user = userOf(signingKey);
    const { name, nats } = claims.controlPlaneUserClaims();
    const jwt = signNatsJwt(
      { subject: user.publicKey, issuedAtS: EPOCH_S, name, nats: { ...nats, issuer_account: account } },
      nkeyOfSeed("account", signingKey),
    );
    return { jwt, seed: user.seed };
  }

  /** Of the environment's account, with the right to ask one queue for something, its own or another one. */
  probe(environment: string, queueOf: string, nowS: number): NatsCredentials & { inbox: string } {
    const { account, signingKey } = this.#of(environment);
    const key = makeNkey("user");
    const about = claims.agentUserClaims({ agent: "probe", name: "probe", account });
    const jwt = signNatsJwt(
      {
        subject: key.publicKey,
        issuedAtS: nowS,
        expiresAtS: nowS + PROBE_S,
        name: about.name,
        nats: { ...about.nats, pub: { allow: [claims.nextOf(this.accountOf(queueOf))] } },
      },
      nkeyOfSeed("account", signingKey),
    );
    return { jwt, seed: key.seed, inbox: claims.agentInbox("probe") };
  }

  #of(environment: string): ImportedBook["environments"][string] {
    const found = this.#book.environments[environment];
    if (found !== undefined && this.has(environment)) return found;
    throw new InsituError(
      "unavailable",
      `the environment ${environment} has no account on this NATS: have one made, and bring it with insitu nats import`,
    );
  }
}

/** Undefined when there are none. @throws internal when the file is damaged */
export async function loadImported(secrets: string): Promise<ImportedAccounts | undefined> {
  const file = join(secrets, FILE);
  const text = await loadSecret(file);
  if (text === undefined) return undefined;
  try {
    return new ImportedAccounts(ImportedBook.parse(JSON.parse(text)));
  } catch (err) {
    throw new InsituError(
      "internal",
      `${file} is damaged: bring the accounts again with insitu nats import`,
      {
        cause: err,
      },
    );
  }
}

/** In place of those that were there. */
export async function storeImported(secrets: string, book: ImportedBook): Promise<string> {
  const file = join(secrets, FILE);
  await replaceSecret(file, `${JSON.stringify(book)}\n`);
  return file;
}

/** The same at every replica. */
function userOf(seed: string): Nkey {
  const root = createHash("sha256").update(seed).digest();
  return makeNkey("user", new Uint8Array(hkdfSync("sha256", root, "insitu nats", "user of streams", 32)));
}

function isSeed(text: string): boolean {
  try {
    nkeyOfSeed("account", text);
    return true;
  } catch {
    return false;
  }
}
