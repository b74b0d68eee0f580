import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { parseAllDocuments } from "yaml";
import { insitu } from "../cli.fixture.ts";

let cwd: string;
beforeEach(() => {
  cwd = mkdtempSync(join(tmpdir(), "insitu-sign-"));
});
afterEach(() => rmSync(cwd, { recursive: true, force: true }));

const run = (...args: string[]) => insitu(args, { cwd });
const read = (name: string): string => readFileSync(join(cwd, name), "utf8");
const write = (name: string, text: string): void => writeFileSync(join(cwd, name), text);
const signatures = (text: string): unknown[] =>
  parseAllDocuments(text).flatMap(
    (document) => (document.toJS() as { signatures?: unknown[] }).signatures ?? [],
  );

const PIPELINE = `# About it.
kind: pipeline
name: nightly
steps:
  - { id: a, run: [cat, a.txt], files: [a.txt] } # first
`;

async function keys(...names: string[]): Promise<void> {
  write("a.txt", "1");
  write("p.yaml", PIPELINE);
  for (const name of names) expect((await run("sign", "keygen", `${name}.pem`)).code).toBe(0);
}

test("a key pair is made once: the private key for its owner alone, and no file is replaced", async () => {
  const made = await run("sign", "keygen", "ada.pem", "--type", "p256", "-o", "json");
  expect(JSON.parse(made.stdout)).toMatchObject({ keyid: expect.stringMatching(/^sha256:[0-9a-f]{64}$/) });
  expect(statSync(join(cwd, "ada.pem")).mode & 0o077).toBe(0);
  expect(read("ada.pem")).toMatch(/^-----BEGIN PRIVATE KEY-----/);
  expect(read("ada.pub.pem")).toMatch(/^-----BEGIN PUBLIC KEY-----/);
  const before = read("ada.pem");
  const again = await run("sign", "keygen", "ada.pem");
  expect(again).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/it is there already, and no key is replaced/),
  });
  expect(read("ada.pem")).toBe(before);
});

test("signing keeps the text of the file, the other documents in it and signatures by others; a second one by the same key replaces the first", async () => {
  await keys("ada", "ci");
  write("p.yaml", `${PIPELINE}---\n# A place.\nkind: pool\nname: licences\ncapacity: 2\n`);
  expect((await run("sign", "-f", "p.yaml", "--key", "ada.pem", "--out", "p.yaml")).code).toBe(0);
  const first = signatures(read("p.yaml"));
  expect(first).toHaveLength(1);
  expect((await run("sign", "-f", "p.yaml", "--key", "ci.pem", "--out", "p.yaml")).code).toBe(0);
  expect(
    (await run("sign", "-f", "p.yaml", "--key", "ada.pem", "--expires", "1d", "--out", "p.yaml")).code,
  ).toBe(0);
  const text = read("p.yaml");
  const both = signatures(text);
  expect(both).toHaveLength(2);
  expect(both).not.toContainEqual(first[0]);
  const checked = await run("verify", "-f", "p.yaml", "--key", "ada.pub.pem", "-o", "json");
  const { checks } = JSON.parse(checked.stdout) as { checks: { verdict: string }[] };
  expect(checks.map(({ verdict }) => verdict).sort()).toEqual(["unknown key", "valid"]);
  expect(checked.code).toBe(0);
});

test.each<[string, string, string]>([
  ["an end without a line break", PIPELINE.trimEnd(), ""],
  ["a comment at its end", PIPELINE, "# The end.\n"],
  ["a document behind it", PIPELINE, "---\n# A place.\nkind: pool\nname:   licences\ncapacity: 2\n"],
  ["a script at its end", `${PIPELINE}  - id: b\n    run: |\n      echo 1\n\n      echo 2\n`, ""],
  ["an anchor", `${PIPELINE}  - { id: b, run: &x [cat] }\n  - { id: c, run: *x }\n`, ""],
])("of a file with %s every character stays, when it is signed again too", async (_what, before, behind) => {
  await keys("ada", "ci");
  write("p.yaml", before + behind);
  for (const key of ["ada", "ci", "ada"])
    expect(await run("sign", "-f", "p.yaml", "--key", `${key}.pem`, "--out", "p.yaml")).toMatchObject({
      code: 0,
    });
  const text = read("p.yaml");
  expect(text.startsWith(before)).toBe(true);
  expect(text.endsWith(behind)).toBe(true);
  expect(text.match(/^signatures:$/gm)).toHaveLength(1);
  for (const key of ["ada", "ci"])
    expect((await run("verify", "-f", "p.yaml", "--key", `${key}.pub.pem`)).code).toBe(0);
});

test("a signature by another hand, of another text or out of its time does not count", async () => {
  await keys("ada", "eve");
  expect(
    (await run("sign", "-f", "p.yaml", "--key", "ada.pem", "--expires", "1ms", "--out", "p.yaml")).code,
  ).toBe(0);
  const expired = await run("verify", "-f", "p.yaml", "--key", "ada.pub.pem");
  expect(expired).toMatchObject({ code: 1, stdout: expect.stringContaining("expired") });
  expect((await run("sign", "-f", "p.yaml", "--key", "ada.pem", "--out", "p.yaml")).code).toBe(0);
  const other = await run("verify", "-f", "p.yaml", "--key", "eve.pub.pem");
  expect(other).toMatchObject({ code: 1, stdout: expect.stringContaining("unknown key") });
  // The file that the step brings along is a part of it.
  write("a.txt", "2");
  const stale = await run("verify", "-f", "p.yaml", "--key", "ada.pub.pem");
  expect(stale).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/p\.yaml:\d+:\d+.*\n*.*signature 1 is of pipeline/),
  });
  // Which signing again mends, and nothing of the old one stays.
  expect((await run("sign", "-f", "p.yaml", "--key", "eve.pem", "--out", "p.yaml")).code).toBe(0);
  expect(signatures(read("p.yaml"))).toHaveLength(1);
  expect((await run("verify", "-f", "p.yaml", "--key", "eve.pub.pem")).code).toBe(0);
  // A signature under somebody else's id.
  const id = JSON.parse(
    (await run("verify", "-f", "p.yaml", "--key", "eve.pub.pem", "-o", "json")).stdout,
  ) as {
    checks: { keyid: string }[];
  };
  await run("sign", "-f", "p.yaml", "--key", "ada.pem", "--out", "ada.yaml");
  const [adas] = (signatures(read("ada.yaml")) as { signatures: { keyid: string }[] }[]).slice(1);
  const adaId = adas!.signatures[0]!.keyid;
  write("forged.yaml", read("p.yaml").replace(id.checks[0]!.keyid, adaId));
  const forged = await run("verify", "-f", "forged.yaml", "--key", "ada.pub.pem");
  expect(forged).toMatchObject({ code: 1, stdout: expect.stringContaining("invalid") });
});

test("a JSON document stays JSON, and the signed one goes to standard output without --out", async () => {
  await keys("ada");
  write("p.json", JSON.stringify({ kind: "pipeline", name: "p", steps: [{ id: "a", uses: "noop" }] }));
  const { stdout, code } = await run("sign", "-f", "p.json", "--key", "ada.pem");
  expect(code).toBe(0);
  expect((JSON.parse(stdout) as { signatures: unknown[] }).signatures).toHaveLength(1);
});

test.each([
  ["no file", ["sign", "--key", "ada.pem"], /name the file to sign/],
  ["no key", ["sign", "-f", "p.yaml"], /name the private key/],
  ["a public key to sign with", ["sign", "-f", "p.yaml", "--key", "ada.pub.pem"], /a private key in PEM/],
  ["a key that is not there", ["sign", "-f", "p.yaml", "--key", "nowhere.pem"], /cannot be read \(ENOENT\)/],
  [
    "a key of another kind",
    ["sign", "-f", "p.yaml", "--key", "rsa.pem"],
    /Ed25519, or EC over P-256, is expected/,
  ],
  ["a private key to verify with", ["verify", "-f", "p.yaml", "--key", "ada.pem"], /a public key in PEM/],
  ["no public key", ["verify", "-f", "p.yaml"], /name the public keys that you trust/],
  ["no pipeline", ["sign", "-f", "pool.yaml", "--key", "ada.pem"], /holds no pipeline/],
])("%s: the message says what is missing", async (_what, args, reason) => {
  await keys("ada");
  write("pool.yaml", "kind: pool\nname: licences\ncapacity: 2\n");
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  write("rsa.pem", privateKey.export({ type: "pkcs8", format: "pem" }).toString());
  expect(await run(...args)).toMatchObject({ code: 2, stderr: expect.stringMatching(reason) });
});
