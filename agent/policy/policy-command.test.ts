import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { stepSpec } from "../../test/support/specs.ts";
import { offerOf, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { explainRules, RULES } from "./allow-lists.ts";
import { parseRules } from "./parse-rules.ts";
import { policyCommand } from "./policy-command.ts";
import { TEMPLATE } from "./template.ts";

const NIGHT = Date.UTC(2026, 10, 25, 2, 0);
let directory: TestDirectory;
let out: string;
let policy: string;

beforeEach(() => {
  directory = testDirectory();
  out = "";
  policy = file(
    "policy.yaml",
    "version: 1\npipelines: [penguins]\nexecutors: [process]\ncommands: [[node, a.mjs]]\n",
  );
});
afterEach(() => directory[Symbol.dispose]());

function file(name: string, text: string): string {
  const path = join(directory.path, name);
  writeFileSync(path, text, { mode: 0o644 });
  return path;
}

function run(...args: string[]): Promise<number> {
  const write = (text: string): void => {
    out += text;
  };
  return policyCommand(args, { write, nowMs: () => NIGHT, uid: process.getuid!() });
}

const offer = (...argv: string[]): string =>
  file(
    "offer.json",
    JSON.stringify(offerOf({ step: stepSpec("fit", { executor: { kind: "process", argv } }) })),
  );

describe("check", () => {
  test("says of an offer what each rule makes of it, and whether the site takes it by its exit code", async () => {
    expect(await run("check", "--site-policy", policy, offer("node", "a.mjs"))).toBe(0);
    for (const rule of RULES) expect(out).toMatch(new RegExp(`^${rule} +allowed$`, "m"));
    expect(out).toMatch(/^The site allows it\.$/m);
    out = "";
    expect(await run("check", "--site-policy", policy, offer("node", "b.mjs"))).toBe(5);
    expect(out).toMatch(/^commands +refused: command "node b\.mjs" is not allowed here$/m);
    expect(out).toMatch(/^The site refuses it\.$/m);
  });

  test("says of a step of a pipeline what the site would make of its offer", async () => {
    const step = { id: "fit", reads: ["rows"], run: ["node", "a.mjs"], files: ["a.mjs"] };
    const pipeline = file(
      "pipeline.yaml",
      JSON.stringify({ kind: "pipeline", name: "penguins", steps: [step] }),
    );
    file("a.mjs", "1");
    const args = ["--pipeline", pipeline, "--step", "fit"];
    expect(await run("check", "--site-policy", policy, ...args)).toBe(5);
    expect(out).toMatch(/^files +refused: file a\.mjs is not allowed here$/m);
    expect(out).toMatch(/^datasets +refused: dataset rows is not allowed here$/m);
    const more =
      'files: [{path: a.mjs, sha256: "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"}]\ndatasets: [rows]\n';
    const wider = file("wider.yaml", `${readFileSync(policy, "utf8")}${more}`);
    expect(await run("check", "--site-policy", wider, ...args)).toBe(0);
  });

  test("knows owners from the documents, and not from an offer", async () => {
    const owned = file("owned.yaml", `${readFileSync(policy, "utf8")}owners: [lab]\n`);
    const steps = [{ id: "fit", run: ["node", "a.mjs"] }];
    const of = (owner: string): string =>
      file("pipeline.yaml", JSON.stringify({ kind: "pipeline", name: "penguins", owner, steps }));
    const checked = (owner: string): Promise<number> =>
      run("check", "--site-policy", owned, "--pipeline", of(owner), "--step", "fit");
    expect(await checked("lab")).toBe(0);
    expect(await checked("others")).toBe(5);
    expect(out).toMatch(/^owners +refused: a pipeline of others is not allowed here$/m);
    expect(await run("check", "--site-policy", owned, offer("node", "a.mjs"))).toBe(5);
    expect(out).toMatch(/^owners +refused: the control plane does not say/m);
  });

  test("tells apart what is refused and what waits for the hours of the site", async () => {
    const day = file(
      "day.yaml",
      `${readFileSync(policy, "utf8")}hours: [{from: "08:00", to: "18:00", zone: UTC}]\n`,
    );
    expect(await run("check", "--site-policy", day, offer("node", "a.mjs"))).toBe(5);
    expect(out).toMatch(/^hours +refused: .*wed 02:00 in UTC$/m);
    expect(out).toMatch(/takes no work now/);
  });

  test("shows an offer that means to write over the screen as it is", async () => {
    await run("check", "--site-policy", policy, offer("\u001b[2J", "\ncommands allowed"));
    expect(out).not.toContain("\u001b");
    expect(out).toMatch(/^commands +refused/m);
    expect(out).not.toMatch(/^commands allowed/m);
  });

  test("of a policy that the agent would not take says why", async () => {
    chmodSync(policy, 0o666);
    await expect(run("check", "--site-policy", policy)).rejects.toThrow(/chmod go-w/);
  });

  test.each<[string[], RegExp]>([
    [["check"], /say which policy/],
    [["check", "--site-policy", "P", "--step", "s"], /go together/],
    [["check", "--site-policy", "P", "a.json", "b.json"], /one argument too many/],
    [["check", "--site-policy", "P", "/nowhere.json"], /nowhere\.json cannot be read/],
    [
      ["check", "--site-policy", "P", "--pipeline", "/nowhere.yaml", "--step", "s"],
      /nowhere\.yaml cannot be read/,
    ],
    [["check", "--colour"], /--colour/],
    [["fly"], /it is init, check, sign or verify/],
  ])("%j says what is wrong", async (args, reason) => {
    await expect(run(...args.map((arg) => (arg === "P" ? policy : arg)))).rejects.toThrow(reason);
  });
});

describe("init", () => {
  test("writes a policy that allows nothing, and never over one that is there", async () => {
    const path = join(directory.path, "new.yaml");
    expect(await run("init", path)).toBe(0);
    expect(await run("check", "--site-policy", path)).toBe(0);
    const step = stepSpec("fit", { reads: ["d"], env: { A: "1" } });
    const asked = { ...offerOf({ step }), files: { "a.mjs": "" } };
    const refused = explainRules(parseRules(path, readFileSync(path, "utf8")), asked, NIGHT)
      .filter(({ allowed }) => !allowed)
      .map(({ rule }) => rule);
    expect(refused).toEqual(["pipelines", "executors", "files", "env", "datasets"]);
    await expect(run("init", path)).rejects.toThrow(/EEXIST/);
  });

  test("its examples are valid where they stand", () => {
    const uncommented = TEMPLATE.replace(
      /^# ?(?=(signedPipelines|hours|cedar|maximum| {2,}(maxAge|keys|- name|pipelines|publicKey|-----|MCow|- \{ days|timeout|\w+Bytes|memory|cpu|processes|openFiles|fileSize)))/gm,
      "",
    ).replace(/^# {2}(?=- | {2}sha256|- \{)/gm, "  ");
    const rules = parseRules("template", uncommented);
    expect(rules.commands).toHaveLength(2);
    expect(rules.files).toHaveLength(2);
    expect(rules.signedPipelines).toMatchObject({ maxAge: 90 * 86_400_000, keys: [{ name: "research" }] });
    expect(rules.cedar).toBe("policy.cedar");
    expect(rules.hours).toHaveLength(2);
    expect(rules.maximum.artifactBytes).toBe(1024 ** 3);
    expect(rules.maximum).toMatchObject({ memory: 4 * 1024 ** 3, cpu: 2, processes: 256, openFiles: 1024 });
  });
});
