/** Accounts below an operator that somebody else runs: made by what `insitu nats requirements` prints, and nothing else of ours. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { VALID_UNTOLD_FOR_S } from "../../control-plane/access/nats-identity.ts";
import { loadImported } from "../../control-plane/access/nats-imported.ts";
import { type NatsClaims, signNatsJwt } from "../../control-plane/access/nats-jwt.ts";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { makeNkey, type Nkey } from "../../shared/wire/nkey.ts";
import { type AttackGround, describeTrespasses, openAttackGround } from "../support/nats-attackers.ts";
import { freePorts, NatsProcess } from "../support/nats-cluster.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 90_000;
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = {
  kind: "pipeline",
  name: "small",
  steps: [{ id: "one", environment: "site", run: ["true"] }],
};
const NAMES = ["streams", "home", "victim", "site"] as const;
type AccountName = (typeof NAMES)[number];

interface Required {
  name: string;
  nats: NatsClaims["nats"] & { imports?: { subject: string; local_subject: string }[]; exports?: object[] };
}
interface Requirements {
  streams: Required;
  environments: Record<string, Required>;
}

/** A team that runs NATS for others: it has an operator, gives out accounts, and keeps their keys. */
class Foreign implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), "insitu-foreign-"));
  readonly #operator = makeNkey("operator");
  readonly #system = makeNkey("account");
  readonly #accounts = Object.fromEntries(
    NAMES.map((name) => [name, { own: makeNkey("account"), signing: makeNkey("account") }]),
  ) as Record<AccountName, { own: Nkey; signing: Nkey }>;
  readonly file = join(this.directory, "accounts.yaml");
  readonly secrets = join(this.directory, "secrets");
  url = "";
  node: NatsProcess | undefined;

  constructor() {
    const given = (name: AccountName): object => ({
      account: this.#accounts[name].own.publicKey,
      signingKey: this.#accounts[name].signing.seed,
    });
    const environments = Object.fromEntries(NAMES.slice(1).map((name) => [name, given(name)]));
    writeFileSync(this.file, JSON.stringify({ streams: given("streams"), environments }));
  }

  account(name: AccountName): string {
    return this.#accounts[name].own.publicKey;
  }

  /** With what the printed requirements say, or what somebody made of them. */
  async start(change: (requirements: Requirements) => void = () => undefined): Promise<void> {
    const printed = execFileSync(
      process.execPath,
      [join(DIST, "insitu.js"), "nats", "requirements", this.file, "-o", "json"],
      { encoding: "utf8" },
    );
    for (const name of NAMES) expect(printed).not.toContain(this.#accounts[name].signing.seed);
    const requirements = JSON.parse(printed) as Requirements;
    change(requirements);
    const signed = (subject: string, { name, nats }: Pick<NatsClaims, "name" | "nats">): string =>
      signNatsJwt({ subject, issuedAtS: 1_700_000_000, name, nats }, this.#operator);
    const preload = { [this.#system.publicKey]: signed(this.#system.publicKey, SYSTEM) };
    for (const name of NAMES) {
      const { own, signing } = this.#accounts[name];
      const required = name === "streams" ? requirements.streams : requirements.environments[name]!;
      const nats = { ...required.nats, signing_keys: [signing.publicKey] };
      preload[own.publicKey] = signed(own.publicKey, { name: required.name, nats });
    }
    const [port] = (await freePorts(1)) as [number];
    const configFile = join(this.directory, `${port}.conf`);
    const config = {
      listen: `127.0.0.1:${port}`,
      max_payload: 8 * 1024 * 1024,
      jetstream: { store_dir: join(this.directory, String(port)) },
      operator: signed(this.#operator.publicKey, {
        name: "foreign",
        nats: { type: "operator", system_account: this.#system.publicKey },
      }),
      system_account: this.#system.publicKey,
      resolver: "MEMORY",
      resolver_preload: preload,
    };
    writeFileSync(configFile, JSON.stringify(config));
    this.url = `nats://127.0.0.1:${port}`;
    const { path: binary } = await findNatsServer();
    this.node = new NatsProcess({ name: "foreign", url: this.url, binary, configFile });
    await this.node.start();
  }

  import(): { status: number | null; stderr: string } {
    mkdirSync(this.secrets, { recursive: true, mode: 0o700 });
    const argv = [join(DIST, "insitu.js"), "nats", "import", this.file, "--secrets", this.secrets];
    return spawnSync(process.execPath, argv, { encoding: "utf8" });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.node?.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const UNLIMITED = {
  subs: -1,
  data: -1,
  payload: -1,
  imports: -1,
  exports: -1,
  wildcards: true,
  conn: -1,
  leaf: -1,
};
const SYSTEM = { name: "system", nats: { type: "account" as const, limits: UNLIMITED } };

function plantOn({ secrets, url }: Foreign): Plant {
  return new Plant({
    dist: DIST,
    serverFlags: ["--secrets", secrets, "--nats-url", url, "--nats-copy", "off"],
  });
}

describe("accounts of a foreign operator", () => {
  let foreign: Foreign;
  let ground: AttackGround;

  beforeAll(async () => {
    foreign = new Foreign();
    await foreign.start();
    expect(foreign.import().status).toBe(0);
    const accounts = (await loadImported(foreign.secrets))!;
    ground = await openAttackGround({ servers: [foreign.url], accounts });
  }, LIMIT_MS);

  afterAll(async () => {
    await ground?.[Symbol.asyncDispose]();
    await foreign?.[Symbol.asyncDispose]();
  });

  test("what was brought is readable by its owner alone", () => {
    expect(statSync(join(foreign.secrets, "nats-accounts.json")).mode & 0o777).toBe(0o600);
  });

  describeTrespasses(() => ground);

  test("a replica and an agent work with them, and the agent's access ends soon", {
    timeout: LIMIT_MS,
  }, async () => {
    await using plant = plantOn(foreign);
    await plant.startServer();
    await plant.apply(SITE, { ...SITE, name: "homeless" }, PIPELINE);
    await plant.startAgent("site", "a");
    const { events } = await plant.follow("small");
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    expect(plant.logOf("server")).toContain("may pull until its access ends");
    expect(plant.logOf("server")).toContain("environment has no account on this NATS");
    const kept = readFileSync(join(plant.directory, "sites", "site", "a", "nats.json"), "utf8");
    const { userJwt } = JSON.parse(kept) as { userJwt: string };
    const { iat, exp } = JSON.parse(Buffer.from(userJwt.split(".")[1]!, "base64url").toString()) as {
      iat: number;
      exp: number;
    };
    expect(exp - iat).toBe(VALID_UNTOLD_FOR_S);
  });
});

test.each([
  [
    "lacks its imports",
    /account of the environment site does not reach its own queue/,
    ({ environments }: Requirements) => {
      environments.site!.nats = { ...environments.site!.nats, imports: [] };
    },
  ],
  [
    "reaches another queue, as exports ask for no token",
    /account of the environment \w+ reaches the queue of/,
    ({ streams, environments }: Requirements) => {
      const open = streams.nats.exports!.map((one) => ({ ...one, account_token_position: undefined }));
      streams.nats = { ...streams.nats, exports: open };
      const all = Object.values(environments).flatMap(({ nats }) => nats.imports!);
      for (const one of Object.values(environments)) one.nats = { ...one.nats, imports: all };
    },
  ],
])(
  "an account that %s is found out when the replica starts",
  { timeout: LIMIT_MS },
  async (_what, said, change) => {
    await using foreign = new Foreign();
    await foreign.start();
    expect(foreign.import().status).toBe(0);
    {
      await using plant = plantOn(foreign);
      await plant.startServer();
      await plant.apply(SITE, { ...SITE, name: "home" }, PIPELINE);
    }
    await foreign.node!.kill();
    await foreign.start(change);
    await using plant = plantOn(foreign);
    await plant.startServer();
    await plant.apply(SITE, { ...SITE, name: "home" });
    await plant.until(async () => said.test(plant.logOf("server")));
  },
);

test.each([
  [
    "the account's own key",
    /site: that is the account's own key/,
    (all: Given) => {
      const own = makeNkey("account");
      all.environments.site = { account: own.publicKey, signingKey: own.seed };
    },
  ],
  [
    "a user's key",
    /environments.site.signingKey: is not the seed of an account/,
    (all: Given) => {
      all.environments.site!.signingKey = makeNkey("user").seed;
    },
  ],
  [
    "one account for two environments",
    /an account is named twice/,
    (all: Given) => {
      all.environments.site!.account = all.environments.home!.account;
    },
  ],
])("%s is refused, and no key is repeated", async (_what, said, change) => {
  await using foreign = new Foreign();
  const given = JSON.parse(readFileSync(foreign.file, "utf8")) as Given;
  change(given);
  writeFileSync(foreign.file, JSON.stringify(given));
  const { status, stderr } = foreign.import();
  expect(status).toBe(2);
  expect(stderr).toMatch(said);
  for (const { signingKey } of Object.values(given.environments)) expect(stderr).not.toContain(signingKey);
});

type Given = { environments: Record<string, { account: string; signingKey: string }> };
