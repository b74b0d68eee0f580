/**
 * The keys of the operator and of its accounts, and what is signed with them.
 *
 * All keys follow from one secret, which lies in the directory of secrets: replicas that share it agree on every
 * account without a word, and a backup that seals it has them all.
 */
import { hkdfSync } from "node:crypto";
import { join } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { newSecret } from "../../shared/system.ts";
import { makeNkey, type Nkey, type NkeyKind } from "../../shared/wire/nkey.ts";
import * as claims from "./nats-claims.ts";
import { signNatsJwt } from "./nats-jwt.ts";
import { loadOrCreateSecret, loadSecret } from "./secret-file.ts";

const FILE = "nats-operator.json";
/** Of what never changes: the same text at each start, so that servers see nothing new. */
const EPOCH_S = 1_700_000_000;

const Kept = z.strictObject({
  v: z.literal(1),
  /** 32 bytes as base64url. */
  root: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
  /** Which signing keys sign now; the ones before these are still accepted. */
  operatorKey: z.int().min(1),
  accountKey: z.int().min(1),
});
type Kept = z.infer<typeof Kept>;

export interface NatsCredentials {
  jwt: string;
  seed: string;
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

export class NatsOperator {
  readonly #kept: Kept;
  readonly #accounts = new Map<string, string>();

  constructor(kept: Kept) {
    this.#kept = kept;
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
    const signing = this.#generations(this.#kept.operatorKey).map(
      (n) => this.#operatorSigningKey(n).publicKey,
    );
    return {
      operatorJwt: signNatsJwt(
        { subject: operator.publicKey, issuedAtS: EPOCH_S, ...claims.operatorClaims(system, signing) },
        operator,
      ),
      systemAccount: system,
      preload: {
        [system]: this.#account(system, claims.systemAccountClaims(), EPOCH_S),
        [this.controlPlane]: this.#account(this.controlPlane, claims.controlPlaneClaims(), EPOCH_S),
      },
    };
  }

  environmentJwt(
    environment: string,
    revocations: Readonly<Record<string, number>>,
    issuedAtS: number,
  ): string {
    const account = this.accountOf(environment);
    const signingKeys = this.#generations(this.#kept.accountKey).map(
      (n) => this.#accountSigningKey(environment, n).publicKey,
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
      this.#accountSigningKey(environment, this.#kept.accountKey),
    );
  }

  /** With all rights in the account of the streams. */
  controlPlaneUser(): NatsCredentials {
    return this.#user("control-plane", claims.controlPlaneUserClaims());
  }

  /** Tells the servers of accounts. */
  claimsUser(): NatsCredentials {
    return this.#user("system", claims.claimsUserClaims());
  }

  #user(account: string, about: ReturnType<typeof claims.controlPlaneUserClaims>): NatsCredentials {
    const user = this.#key("user", `user of ${account}`);
    const jwt = signNatsJwt(
      { subject: user.publicKey, issuedAtS: EPOCH_S, ...about },
      this.#key("account", account),
    );
    return { jwt, seed: user.seed };
  }

  #account(subject: string, about: ReturnType<typeof claims.environmentClaims>, issuedAtS: number): string {
    return signNatsJwt({ subject, issuedAtS, ...about }, this.#operatorSigningKey(this.#kept.operatorKey));
  }

  /** The one in use, and the one before. */
  #generations(current: number): number[] {
    return current > 1 ? [current, current - 1] : [current];
  }

  #operatorSigningKey(generation: number): Nkey {
    return this.#key("operator", `operator signing ${generation}`);
  }

  #environmentKey(environment: string): Nkey {
    return this.#key("account", `environment ${environment}`);
  }

  #accountSigningKey(environment: string, generation: number): Nkey {
    return this.#key("account", `environment ${environment} signing ${generation}`);
  }

  #key(kind: NkeyKind, purpose: string): Nkey {
    const root = Buffer.from(this.#kept.root, "base64url");
    return makeNkey(kind, new Uint8Array(hkdfSync("sha256", root, "insitu nats", `${kind} ${purpose}`, 32)));
  }
}

/** @throws internal when the file is damaged */
export async function loadOrCreateNatsOperator(secrets: string): Promise<NatsOperator> {
  const file = join(secrets, FILE);
  const fresh: Kept = { v: 1, root: newSecret(32), operatorKey: 1, accountKey: 1 };
  return new NatsOperator(parse(await loadOrCreateSecret(file, () => `${JSON.stringify(fresh)}\n`), file));
}

/** Undefined when there is none. @throws internal when the file is damaged */
export async function loadNatsOperator(secrets: string): Promise<NatsOperator | undefined> {
  const file = join(secrets, FILE);
  const text = await loadSecret(file);
  return text === undefined ? undefined : new NatsOperator(parse(text, file));
}

function parse(text: string, file: string): Kept {
  try {
    return Kept.parse(JSON.parse(text));
  } catch (err) {
    throw new InsituError(
      "internal",
      `${file} is damaged: take it from a backup; without it, agents reach no queue until they are given new credentials`,
      { cause: err },
    );
  }
}
