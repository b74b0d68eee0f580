import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { offerOf, quiet, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { policyCommand } from "./policy-command.ts";
import { readPublicKeys, sealPath } from "./policy-seal.ts";
import { SealKeeper } from "./seal-keeper.ts";
import { SitePolicy } from "./site-policy.ts";

const uid = process.getuid!();
const NOOP = "version: 1\npipelines: [penguins]\nexecutors: [noop]\n";
const OPEN = NOOP.replace("[noop]", "[noop, process]");
let directory: TestDirectory;
let path: string;
let statePath: string;
let team: { publicKey: KeyObject; privateKey: KeyObject };
let policy: SitePolicy;
let opened: string[];

beforeEach(() => {
  directory = testDirectory();
  path = join(directory.path, "policy.yaml");
  statePath = join(directory.path, "state", "site-policy.json");
  team = generateKeyPairSync("ed25519");
  opened = [];
  policy = agentPolicy([team.publicKey]);
});
afterEach(() => {
  policy.close();
  directory[Symbol.dispose]();
});

function agentPolicy(keys: KeyObject[], environment = "hq"): SitePolicy {
  const seals = new SealKeeper({ keys, environment, uid, statePath });
  const openCedar = async (file: string) => {
    opened.push(file);
    return { answer: async () => ({ allowed: true, message: "allowed" }), close: () => undefined };
  };
  return new SitePolicy({ path, uid, openCedar, seals, clock: systemClock, log: quiet });
}

function put(name: string, text: string | Buffer): string {
  const file = join(directory.path, name);
  rmSync(file, { force: true });
  writeFileSync(file, text, { mode: 0o644 });
  return file;
}
const pem = (key: KeyObject): string =>
  key.export({ type: key.type === "private" ? "pkcs8" : "spki", format: "pem" }) as string;

let out: string;
async function run(...args: string[]): Promise<number> {
  out = "";
  const write = (text: string): void => {
    out += text;
  };
  return await policyCommand(args, { write, nowMs: () => 0, uid });
}

/** As the team does it. */
function sign(text: string, { key = team.privateKey, environment = "hq", more = [] as string[] } = {}) {
  put("policy.yaml", text);
  const keyFile = put("team.key", pem(key));
  return run("sign", "--site-policy", path, "--key", keyFile, "--environment", environment, ...more);
}

test("a signed policy is in force, and a newer one after it", async () => {
  expect(await sign(NOOP)).toBe(0);
  expect(out).toMatch(/serial 1, for hq/);
  await policy.look();
  expect(policy.state).toEqual({ digest: expect.stringMatching(/^sha256:/), trouble: "" });
  expect((await policy.decide(offerOf())).kind).toBe("allow");
  await sign(NOOP.replace("penguins", "others"));
  expect(out).toMatch(/serial 2, for hq/);
  await policy.look();
  expect((await policy.decide(offerOf())).kind).toBe("veto");
});

describe("what is not signed as it is", () => {
  const forged = generateKeyPairSync("ed25519").privateKey;
  const cases: [string, () => Promise<unknown>, RegExp][] = [
    ["has no signature", async () => rmSync(sealPath(path)), /policy\.yaml\.sig cannot be read: ENOENT/],
    ["was changed", async () => put("policy.yaml", OPEN), /it was changed and not signed again/],
    ["is signed by another key", () => sign(OPEN, { key: forged }), /not of a key that this agent was given/],
    ["is signed for another site", () => sign(OPEN, { environment: "lab" }), /for the environment lab/],
    ["has a signature that is none", async () => put("policy.yaml.sig", "{}"), /no signature of a site/],
    [
      "has a larger serial written into its signature",
      async () => put("policy.yaml.sig", seal().replace('"serial": 1', '"serial": 9')),
      /not of a key that this agent was given/,
    ],
    [
      "has another digest written into its signature",
      async () => put("policy.yaml.sig", seal().replace(/sha256:../, "sha256:00")),
      /not of a key that this agent was given/,
    ],
    [
      "has a signature that others may write to",
      async () => chmodSync(sealPath(path), 0o666),
      /others than its owner may write to .*\.sig/,
    ],
  ];
  const seal = (): string => readFileSync(sealPath(path), "utf8");

  test.each(cases)("and %s leaves the former in force, and says so", async (_name, change, reason) => {
    await sign(NOOP);
    await policy.look();
    const { digest } = policy.state;
    await change();
    await policy.look();
    expect(policy.state).toEqual({ digest, trouble: expect.stringMatching(reason) });
    expect(policy.state.trouble).toMatch(/the policy from before stays in force$/);
    expect((await policy.decide(offerOf())).kind).toBe("allow");
  });

  test.each(cases)("and %s is no policy to start with", async (_name, change, reason) => {
    await sign(NOOP);
    await change();
    await policy.look();
    expect(policy.closed).toMatch(reason);
    expect((await policy.decide(offerOf())).kind).toBe("closed");
  });
});

describe("an older policy", () => {
  test("that was signed is refused, also after a restart", async () => {
    await sign(OPEN);
    await policy.look();
    const older = readFileSync(sealPath(path));
    await sign(NOOP);
    await policy.look();
    const { digest } = policy.state;
    put("policy.yaml", OPEN);
    put("policy.yaml.sig", older);
    await policy.look();
    expect(policy.state).toEqual({ digest, trouble: expect.stringMatching(/serial 1, after 2/) });
    const restarted = agentPolicy([team.publicKey]);
    await restarted.look();
    expect(restarted.closed).toMatch(/it is older than what was in force: serial 1, after 2/);
    await sign(NOOP);
    await restarted.look();
    expect(restarted.closed).toBe("");
  });

  test("of the same number with other content is refused", async () => {
    await sign(NOOP);
    await policy.look();
    await sign(OPEN, { more: ["--serial", "1"] });
    await policy.look();
    expect(policy.state.trouble).toMatch(/serial 1 was another policy before/);
  });

  test("cannot be told when what is known of them is damaged, and then none is taken", async () => {
    mkdirSync(join(directory.path, "state"));
    put("state/site-policy.json", '{"serial":');
    await sign(NOOP);
    await policy.look();
    expect(policy.closed).toMatch(/site-policy\.json is damaged/);
  });

  test("could come after one whose number cannot be kept, so that one is not taken", async () => {
    put("state", "a file where a directory should be");
    await sign(NOOP);
    await policy.look();
    expect(policy.closed).toMatch(/site-policy\.json cannot be (read|written)/);
  });
});

test("its Cedar part is signed with it, and nothing that is not signed is handed to the evaluator", async () => {
  put("more.cedar", "permit (principal, action, resource);");
  await sign(`${NOOP}cedar: more.cedar\n`);
  await policy.look();
  expect([policy.closed, opened.length]).toEqual(["", 1]);
  put("more.cedar", "permit (principal, action, resource) ;");
  await policy.look();
  expect(policy.state.trouble).toMatch(/it was changed and not signed again/);
  expect(opened).toHaveLength(1);
});

test("while the team changes its key, either one is taken", async () => {
  const next = generateKeyPairSync("ed25519");
  const keys = readPublicKeys("team.pub", pem(team.publicKey) + pem(next.publicKey));
  const both = agentPolicy(keys);
  await sign(NOOP);
  await both.look();
  expect(both.state.trouble).toBe("");
  await sign(OPEN, { key: next.privateKey });
  await both.look();
  expect(both.state.trouble).toBe("");
  await policy.look();
  expect(policy.closed).toMatch(/not of a key that this agent was given/);
});

describe("the commands", () => {
  const verify = (environment = "hq", key = team.publicKey) =>
    run(
      "verify",
      "--site-policy",
      path,
      "--site-policy-key",
      put("team.pub", pem(key)),
      "--environment",
      environment,
    );

  test("verify says what an agent would say", async () => {
    await sign(NOOP, { more: ["--serial", "7"] });
    expect(await verify()).toBe(0);
    expect(out).toMatch(/serial 7, signed for hq/);
    await expect(verify("lab")).rejects.toThrow(/signed for the environment hq, and this is lab/);
    await expect(verify("hq", generateKeyPairSync("ed25519").publicKey)).rejects.toThrow(/not of a key/);
    put("policy.yaml", OPEN);
    await expect(verify()).rejects.toThrow(/changed and not signed again/);
  });

  test("sign signs no policy with a fault, and never a smaller number", async () => {
    await expect(sign("version: 2\n")).rejects.toThrow(/policy\.yaml:1:10/);
    await sign(NOOP, { more: ["--serial", "7"] });
    await expect(sign(NOOP, { more: ["--serial", "6"] })).rejects.toThrow(/less than that of .*which is 7/);
    await expect(sign(NOOP, { more: ["--serial", "x"] })).rejects.toThrow(/whole number/);
    await expect(sign(NOOP, { environment: "Not One" })).rejects.toThrow(/no name of an environment/);
  });

  test.each<[string, () => string, RegExp]>([
    ["a public key", () => pem(team.publicKey), /no private key in PEM/],
    [
      "a key of another kind",
      () => pem(generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey),
      /is of ec; it must be of Ed25519/,
    ],
    [
      "a key with a passphrase",
      () =>
        team.privateKey.export({
          type: "pkcs8",
          format: "pem",
          cipher: "aes-256-cbc",
          passphrase: "x",
        }) as string,
      /needs a passphrase/,
    ],
  ])("sign does not take %s", async (_name, text, reason) => {
    put("policy.yaml", NOOP);
    const key = put("other.key", text());
    await expect(run("sign", "--site-policy", path, "--key", key, "--environment", "hq")).rejects.toThrow(
      reason,
    );
  });

  test.each<[string, () => string, RegExp]>([
    ["a private key", () => pem(team.privateKey), /no business on this host/],
    ["nothing", () => "", /must hold public keys of Ed25519/],
    [
      "one of another kind beside a good one",
      () => pem(team.publicKey) + pem(generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey),
      /must hold public keys of Ed25519/,
    ],
  ])("an agent does not start with %s as the team's key", (_name, text, reason) => {
    expect(() => readPublicKeys("team.pub", text())).toThrow(reason);
  });

  test("each says which flag is missing", async () => {
    await expect(run("sign", "--site-policy", path)).rejects.toThrow(/needs --environment/);
    await expect(run("verify", "--site-policy", path, "--environment", "hq")).rejects.toThrow(
      /needs --site-policy-key/,
    );
  });
});
