/**
 * The keys of the operator and of its accounts, and what is signed with them.
 *
 * All keys follow from the secrets of one file in the directory of secrets: replicas that share it agree on every
 * account without a word, and a backup that seals it has them all. Which of them sign is said there too.
 */
import { createHash, hkdfSync } from "node:crypto";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { newSecret } from "../../shared/system.ts";
import { makeNkey, type Nkey, type NkeyKind } from "../../shared/wire/nkey.ts";
import type { NatsAccounts } from "./nats-accounts.ts";
import * as claims from "./nats-claims.ts";
import { signNatsJwt } from "./nats-jwt.ts";
import { firstBook, isStrict, KeyBook } from "./nats-key-book.ts";
import { loadOrCreateSecret, loadSecret, replaceSecret } from "./secret-file.ts";

const FILE = "nats-operator.json";
/** Of what never changes: the same text at each start, so that servers see nothing new. */
const EPOCH_S = 1_700_000_000;
const INSPECTION_S = 300;

/** Read them at each use: they are those of the keys that sign then. */
export interface NatsCredentials {
  readonly jwt: string;
  readonly seed: string;
}

/** As much as nats-server has to be configured with. */
export interface OperatorConfig {
  operatorJwt: string;
  systemAccount: string;
  /** JWTs of accounts by their public key. */
  preload: Readonly<Record<string, string>>;
}

export interface AgentUser {
  environment: string;
  name: string;
  /** Made on the agent's host, where its seed stays. */
  userKey: string;
  issuedAtS: number;
  expiresAtS: number;
}

export class NatsOperator implements NatsAccounts {
  #book: KeyBook;
  readonly #accounts = new Map<string, string>();

  constructor(book: KeyBook) {
    this.#book = book;
  }

  get book(): KeyBook {
    return this.#book;
  }

  /** Says which keys there are and which sign, and nothing of them. */
  get digest(): string {
    return createHash("sha256").update(JSON.stringify(this.#book)).digest("hex");
  }

  /** Signs with the keys of this book from now on. @throws internal when it is of another operator */
  adopt(book: KeyBook): void {
    if (book.root !== this.#book.root)
      throw new InsituError("internal", `${FILE} holds the keys of another NATS now: restart the server`);
    this.#book = book;
  }

  /** No key was ever changed. */
  get isFirst(): boolean {
    const { operator, accounts } = this.#book;
    return operator.changedAtS === null && accounts.changedAtS === null;
  }

  /** Names what is signed by the key that signs agents now. */
  get accountGeneration(): number {
    return this.#book.accounts.signs;
  }

  /** Holds the streams. */
  get controlPlane(): string {
    return this.#key("account", "control-plane").publicKey;
  }

  /** Also the name of the environment's durable consumer. */
  accountOf(environment: string): string {
    const known = this.#accounts.get(environment);
    if (known !== undefined) return known;
    const { publicKey } = this.#environmentKey(environment);
    this.#accounts.set(environment, publicKey);
    return publicKey;
  }

  get config(): OperatorConfig {
    const operator = this.#key("operator", "operator");
    const system = this.#key("account", "system").publicKey;
    const { changedAtS } = this.#book.operator;
    const about = claims.operatorClaims(system, this.operatorSigningKeys, isStrict(this.#book));
    return {
      operatorJwt: signNatsJwt(
        { subject: operator.publicKey, issuedAtS: changedAtS ?? EPOCH_S, ...about },
        operator,
      ),
      systemAccount: system,
      preload: this.centralAccounts,
    };
  }

  /** Public keys with which accounts may be signed, the oldest first. */
  get operatorSigningKeys(): string[] {
    return this.#book.operator.keys.map(({ generation }) => this.#operatorSigningKey(generation).publicKey);
  }

  /** JWTs of the accounts of the system and of the streams, by their public key. */
  get centralAccounts(): Readonly<Record<string, string>> {
    const { operator, accounts } = this.#book;
    const system = this.#key("account", "system").publicKey;
    const issuedAtS = Math.max(operator.changedAtS ?? EPOCH_S, accounts.changedAtS ?? EPOCH_S);
    const signing = (account: string): string[] =>
      accounts.keys.flatMap(({ generation, secret }) =>
        secret === null ? [] : [this.#centralSigningKey(account, generation).publicKey],
      );
    return {
      [system]: this.#account(system, claims.systemAccountClaims(signing("system")), issuedAtS),
      [this.controlPlane]: this.#account(
        this.controlPlane,
        claims.controlPlaneClaims(signing("control-plane")),
        issuedAtS,
      ),
    };
  }

  environmentJwt(
    environment: string,
    revocations: Readonly<Record<string, number>>,
    issuedAtS: number,
  ): string {
    const account = this.accountOf(environment);
    const signingKeys = this.#book.accounts.keys.map(
      ({ generation }) => this.#accountSigningKey(environment, generation).publicKey,
    );
    const { controlPlane } = this;
    return this.#account(
      account,
      claims.environmentClaims({ environment, account, controlPlane, signingKeys, revocations }),
      issuedAtS,
    );
  }

  agentJwt({ environment, name, userKey, issuedAtS, expiresAtS }: AgentUser): string {
    const account = this.accountOf(environment);
    const about = claims.agentUserClaims({ agent: `${environment}/${name}`, name, account });
    return signNatsJwt(
      { subject: userKey, issuedAtS, expiresAtS, ...about },
      this.#accountSigningKey(environment, this.#book.accounts.signs),
    );
  }

  /** With all rights in the account of the streams. */
  controlPlaneUser(): NatsCredentials {
    return this.#live("control-plane", claims.controlPlaneUserClaims());
  }

  /** Tells the servers of accounts. */
  claimsUser(): NatsCredentials {
    return this.#live("system", claims.claimsUserClaims());
  }

  /** Asks the servers which operator they trust and who is connected, for a while. */
  inspectorUser(nowS: number): NatsCredentials {
    return this.#user("system", claims.inspectorUserClaims(), {
      issuedAtS: nowS,
      expiresAtS: nowS + INSPECTION_S,
    });
  }

  #live(account: string, about: CentralUserClaims): NatsCredentials {
    const current = (): NatsCredentials =>
      this.#user(account, about, { issuedAtS: this.#book.accounts.changedAtS ?? EPOCH_S });
    return {
      get jwt() {
        return current().jwt;
      },
      get seed() {
        return current().seed;
      },
    };
  }

  #user(
    account: string,
    about: CentralUserClaims,
    times: { issuedAtS: number; expiresAtS?: number },
  ): NatsCredentials {
    const { signs, keys } = this.#book.accounts;
    const follows = keys.some(({ generation, secret }) => generation === signs && secret === null);
    const { publicKey: accountKey } = this.#key("account", account);
    const user = follows
      ? this.#key("user", `user of ${account}`)
      : this.#key("user", `user of ${account} ${signs}`, this.#secretOf("accounts", signs));
    const jwt = follows
      ? signNatsJwt({ subject: user.publicKey, ...times, ...about }, this.#key("account", account))
      : signNatsJwt(
          {
            subject: user.publicKey,
            ...times,
            ...about,
            nats: { ...about.nats, issuer_account: accountKey },
          },
          this.#centralSigningKey(account, signs),
        );
    return { jwt, seed: user.seed };
  }

  #account(subject: string, about: ReturnType<typeof claims.environmentClaims>, issuedAtS: number): string {
    return signNatsJwt({ subject, issuedAtS, ...about }, this.#operatorSigningKey(this.#book.operator.signs));
  }

  #operatorSigningKey(generation: number): Nkey {
    return this.#key("operator", `operator signing ${generation}`, this.#secretOf("operator", generation));
  }

  /** Of the accounts of the system and of the streams; the first generation signs with the account's own key. */
  #centralSigningKey(account: string, generation: number): Nkey {
    return this.#key("account", `${account} signing ${generation}`, this.#secretOf("accounts", generation));
  }

  #environmentKey(environment: string): Nkey {
    return this.#key("account", `environment ${environment}`);
  }

  #accountSigningKey(environment: string, generation: number): Nkey {
    const secret = this.#secretOf("accounts", generation);
    return this.#key("account", `environment ${environment} signing ${generation}`, secret);
  }

  #secretOf(what: "operator" | "accounts", generation: number): string {
    const key = this.#book[what].keys.find((one) => one.generation === generation);
    if (key === undefined) throw new InsituError("internal", `no key ${generation} of ${what} is in use`);
    return key.secret ?? this.#book.root;
  }

  #key(kind: NkeyKind, purpose: string, secret = this.#book.root): Nkey {
    const bytes = Buffer.from(secret, "base64url");
    return makeNkey(kind, new Uint8Array(hkdfSync("sha256", bytes, "insitu nats", `${kind} ${purpose}`, 32)));
  }
}

type CentralUserClaims = ReturnType<typeof claims.controlPlaneUserClaims>;

/** @throws internal when the file is damaged */
export async function loadOrCreateNatsOperator(secrets: string): Promise<NatsOperator> {
  const file = join(secrets, FILE);
  const fresh = firstBook(newSecret(32));
  return new NatsOperator(parse(await loadOrCreateSecret(file, () => `${JSON.stringify(fresh)}\n`), file));
}

/** Undefined when there is none. @throws internal when the file is damaged */
export async function loadNatsOperator(secrets: string): Promise<NatsOperator | undefined> {
  const file = join(secrets, FILE);
  const text = await loadSecret(file);
  return text === undefined ? undefined : new NatsOperator(parse(text, file));
}

/** All or nothing, and on the disk when it resolves. */
export async function storeKeyBook(secrets: string, book: KeyBook): Promise<void> {
  await replaceSecret(join(secrets, FILE), `${JSON.stringify(book)}\n`);
}

function parse(text: string, file: string): KeyBook {
  try {
    return KeyBook.parse(JSON.parse(text));
  } catch (err) {
    throw new InsituError(
      "internal",
      `${file} is damaged: take it from a backup; without it, agents reach no queue until they are given new credentials`,
      { cause: err },
    );
  }
}
