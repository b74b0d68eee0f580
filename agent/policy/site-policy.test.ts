import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { offerOf, quiet, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import type { Bundle } from "../bundle.fixture.ts";
import { CedarProcess } from "./cedar-process.ts";
import { bundleEvaluator, launchNode } from "./evaluator.fixture.ts";
import { SitePolicy } from "./site-policy.ts";

const uid = process.getuid!();
const NOOP = "version: 1\npipelines: [penguins]\nexecutors: [noop]\n";
let evaluator: Bundle;
let directory: TestDirectory;
let path: string;
let policy: SitePolicy;

beforeAll(async () => {
  evaluator = await bundleEvaluator();
});
afterAll(() => evaluator[Symbol.dispose]());
beforeEach(() => {
  directory = testDirectory();
  path = join(directory.path, "policy.yaml");
  policy = new SitePolicy({ path, uid, openCedar, clock: systemClock, log: quiet });
});
afterEach(() => {
  policy.close();
  directory[Symbol.dispose]();
});

const openCedar = (file: string, text: string) =>
  CedarProcess.open({ clock: systemClock, log: quiet, launch: () => launchNode(evaluator.path) }, file, text);

/** As people replace a file: another one under its name. */
function put(text: string, mode = 0o644): void {
  writeFileSync(`${path}.new`, text);
  chmodSync(`${path}.new`, mode);
  renameSync(`${path}.new`, path);
}

function replaceByDirectory(): void {
  rmSync(path);
  mkdirSync(path);
}

function replaceByPipe(): void {
  rmSync(path);
  execFileSync("mkfifo", ["-m", "644", path]);
}

test("without its file no work is taken, and the reason says so; with it there is", async () => {
  await policy.look();
  expect(policy.closed).toMatch(/policy\.yaml cannot be read: ENOENT/);
  expect(await policy.decide(offerOf())).toMatchObject({ kind: "closed" });
  put(NOOP);
  await policy.look();
  expect(policy.closed).toBe("");
  expect(await policy.decide(offerOf())).toEqual({ kind: "allow", digest: policy.state.digest });
  expect(policy.state).toEqual({ digest: expect.stringMatching(/^sha256:[0-9a-f]{64}$/), trouble: "" });
});

test("a new file is in force without a restart", async () => {
  put(NOOP);
  await policy.look();
  const before = policy.state.digest;
  put(NOOP.replace("penguins", "others"));
  await policy.look();
  expect(policy.state.digest).not.toBe(before);
  expect(await policy.decide(offerOf())).toEqual({
    kind: "veto",
    digest: policy.state.digest,
    message: "the site's policy refuses it, rule pipelines: pipeline penguins is not allowed here",
  });
});

test.each<[string, () => void, RegExp]>([
  [
    "is not valid",
    () => put("version: 1\npipeline: [penguins]\n"),
    /policy\.yaml:2:1: .*pipeline.*pipelines/,
  ],
  ["is no YAML", () => put("version: [1\n"), /policy\.yaml:\d+:\d+: /],
  ["is empty", () => put(""), /policy\.yaml:1:1: .*no document/],
  ["may be written by others", () => put(NOOP, 0o666), /others than its owner.*chmod go-w/],
  ["went away", () => rmSync(path), /cannot be read: ENOENT/],
  ["is a directory", replaceByDirectory, /is no file/],
  ["is a pipe", replaceByPipe, /is no file/],
])("one that %s leaves the former in force, and says so", async (_name, change, reason) => {
  put(NOOP);
  await policy.look();
  const { digest } = policy.state;
  change();
  await policy.look();
  expect(policy.state.digest).toBe(digest);
  expect(policy.state.trouble).toMatch(reason);
  expect(policy.state.trouble).toMatch(/the policy from before stays in force$/);
  expect(await policy.decide(offerOf())).toMatchObject({ kind: "allow" });
  rmSync(path, { recursive: true, force: true });
  put(NOOP);
  await policy.look();
  expect(policy.state).toEqual({ digest, trouble: "" });
});

test.each<[string, string, RegExp]>([
  [
    "a key of the wrong kind",
    "version: 1\nexecutors: noop\n",
    /:2:12: executors is .noop.; it must be a list/,
  ],
  ["another format", "version: 2\n", /:1:10: version is 2; it must be 1, the only format/],
  ["no format", "pipelines: [a]\n", /version/],
  ["an unknown zone", 'version: 1\nhours: [{from: "01:00", to: "02:00", zone: Mars/Phobos}]\n', /IANA/],
  ["an offset as zone", 'version: 1\nhours: [{from: "01:00", to: "02:00", zone: "+01:00"}]\n', /IANA/],
  ["no time between", 'version: 1\nhours: [{from: "01:00", to: "01:00", zone: UTC}]\n', /no time between/],
  ["an unknown class", "version: 1\ndatasets: [{name: a, classification: hidden}]\n", /classification/],
  ["a command without a program", 'version: 1\ncommands: [["**"]]\n', /the first item is the program/],
  ["arguments after all", 'version: 1\ncommands: [[a, "**", b]]\n', /comes last/],
  ["two policies", "version: 1\n---\nversion: 1\n", /a second/],
  ["a size without a unit's name", "version: 1\nmaximum: {outputBytes: 1 stone}\n", /outputBytes/],
])("%s is refused with its place", async (_name, text, reason) => {
  put(text);
  await policy.look();
  expect(policy.closed).toMatch(/policy\.yaml:\d+:\d+: /);
  expect(policy.closed).toMatch(reason);
  expect((await policy.decide(offerOf())).kind).toBe("closed");
});

test("outside its hours no work is taken, by the clock of the site", async () => {
  let nowMs = Date.UTC(2026, 10, 25, 7, 59);
  const clock = { ...systemClock, wallMs: () => nowMs };
  policy = new SitePolicy({ path, uid, openCedar, clock, log: quiet });
  put(`${NOOP}hours: [{ from: "08:00", to: "18:00", zone: UTC }]\n`);
  await policy.look();
  expect(policy.closed).toMatch(/outside the hours/);
  // An offer that was on its way: it goes back to the queue.
  expect((await policy.decide(offerOf({ issuedAtMs: Date.UTC(2026, 10, 25, 12) }))).kind).toBe("closed");
  nowMs += 60_000;
  expect(policy.closed).toBe("");
  expect((await policy.decide(offerOf())).kind).toBe("allow");
});

test("a directory in which others can put another file under its name is refused, and tried again when it is mended", async () => {
  put(NOOP);
  chmodSync(directory.path, 0o777);
  await policy.look();
  expect(policy.closed).toMatch(/others than its owner may write to .*; run: chmod go-w/);
  chmodSync(directory.path, 0o755);
  await policy.look();
  expect(policy.closed).toBe("");
});

test("behind a link, the file that it leads to counts", async () => {
  const real = join(directory.path, "real.yaml");
  writeFileSync(real, NOOP);
  chmodSync(real, 0o664);
  symlinkSync(real, path);
  await policy.look();
  expect(policy.closed).toMatch(/others than its owner may write to .*real\.yaml/);
});

test.runIf(uid === 0)("a file of another user is refused", async () => {
  put(NOOP);
  chownSync(path, 12_345, 0);
  await policy.look();
  expect(policy.closed).toMatch(/belongs to user 12345.*chown root/);
});

describe("with Cedar policies", () => {
  const PERMIT = "permit (principal, action, resource);\n";
  const FORBID = `@id("no-penguins")\nforbid (principal == Pipeline::"penguins", action, resource);\n`;
  const cedar = (text: string): void =>
    writeFileSync(join(directory.path, "more.cedar"), text, { mode: 0o644 });
  const withCedar = `${NOOP}cedar: more.cedar\n`;

  test("both have to allow a step, and the policy that does not is named", async () => {
    cedar(PERMIT);
    put(withCedar);
    await policy.look();
    expect((await policy.decide(offerOf())).kind).toBe("allow");
    const { digest } = policy.state;
    cedar(PERMIT + FORBID);
    await policy.look();
    expect(policy.state.digest).not.toBe(digest);
    expect(await policy.decide(offerOf())).toMatchObject({
      kind: "veto",
      message: "the site's policy refuses it, rule cedar: its Cedar policy no-penguins forbids it",
    });
    cedar(`permit (principal, action, resource) when { context.reads.contains("x") };`);
    await policy.look();
    expect(await policy.decide(offerOf())).toMatchObject({
      message: expect.stringMatching(/no Cedar policy permits it/),
    });
    expect(await policy.decide(offerOf({ step: stepSpec("fit", { reads: ["x"] }) }))).toMatchObject({
      message: expect.stringMatching(/rule datasets: [^;]*$/),
    });
  });

  test("a policy that permits what it cannot evaluate permits nothing", async () => {
    cedar(
      `${PERMIT}@id("sum")\nforbid (principal, action, resource) when { context.timeoutMs + 9223372036854775807 > 0 };`,
    );
    put(withCedar);
    await policy.look();
    expect(await policy.decide(offerOf())).toMatchObject({
      message: expect.stringMatching(/Cedar policy sum could not be evaluated/),
    });
  });

  test.each<[string, string, RegExp]>([
    ["is no Cedar", "permit (principal,\naction;", /more\.cedar:2: /],
    [
      "asks for what there is not",
      `@id("a") permit (principal, action, resource) when { context.colour == "x" };`,
      /a: .*colour/,
    ],
    ["is empty", "// nothing\n", /no policy in it/],
    ["has a template", "permit (principal == ?principal, action, resource);", /template/],
    ["has a name that is none", `@id("__proto__") ${PERMIT}`, /letters, digits/],
    ["has one name twice", `@id("a") ${PERMIT} @id("a") ${PERMIT}`, /two policies have @id\("a"\)/],
  ])("a file that %s leaves the former in force", async (_name, text, reason) => {
    cedar(PERMIT);
    put(withCedar);
    await policy.look();
    const { digest } = policy.state;
    cedar(text);
    await policy.look();
    expect(policy.state).toEqual({ digest, trouble: expect.stringMatching(reason) });
    expect((await policy.decide(offerOf())).kind).toBe("allow");
  });

  test("a file that others may write to is refused like the policy's own", async () => {
    cedar(PERMIT);
    chmodSync(join(directory.path, "more.cedar"), 0o666);
    put(withCedar);
    await policy.look();
    expect(policy.closed).toMatch(/more\.cedar; run: chmod go-w/);
  });
});

test("what is told of a bad file is bounded", async () => {
  put(`version: 1\n${Array.from({ length: 500 }, (_, index) => `unknown${index}: 1`).join("\n")}\n`);
  await policy.look();
  expect(policy.state.trouble.length).toBeLessThan(1_000);
});
