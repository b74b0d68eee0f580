import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { StepSecrets } from "./step-secrets.ts";

const SECRET = "a-canary-of-some-length";
const base64 = (text: string): string => Buffer.from(text).toString("base64");
let directory: TestDirectory;
let outputs: string;
beforeEach(() => {
  directory = testDirectory();
  outputs = join(directory.path, "outputs");
  mkdirSync(outputs);
});
afterEach(() => directory[Symbol.dispose]());

function secrets(maxBytes: Record<string, number> = {}, files?: string): StepSecrets {
  return new StepSecrets({
    values: [base64(SECRET)],
    outputs: { directory: outputs, maxBytes },
    ...(files === undefined ? {} : { files: { directory: files, contents: { KEY: base64(SECRET) } } }),
  });
}

test("its files are its user's alone, and gone when it has ended", () => {
  const files = join(directory.path, "files");
  const placed = secrets({}, files);
  expect([statSync(files).mode & 0o777, statSync(join(files, "KEY")).mode & 0o777]).toEqual([0o700, 0o600]);
  expect(readFileSync(join(files, "KEY"), "utf8")).toBe(SECRET);
  placed.withdraw();
  expect(existsSync(files)).toBe(false);
});

test("a directory that somebody made before is not filled", () => {
  const files = join(directory.path, "files");
  mkdirSync(files);
  expect(() => secrets({}, files)).toThrow(/EEXIST/);
  expect(readdirSync(files)).toEqual([]);
});

test("of outputs, those that hold a secret are replaced; links, large and missing ones are left to the agent", () => {
  const outside = join(directory.path, "outside");
  writeFileSync(outside, SECRET);
  writeFileSync(join(outputs, "said"), `it is ${SECRET} and ${base64(SECRET)}\n`);
  writeFileSync(join(outputs, "plain"), "nothing\n");
  writeFileSync(join(outputs, "large"), SECRET);
  symlinkSync(outside, join(outputs, "link"));
  const step = secrets({ said: 1000, plain: 1000, large: 3, link: 1000, missing: 1000 });
  step.maskOutputs();
  expect(readFileSync(join(outputs, "said"), "utf8")).toBe("it is *** and ***\n");
  expect(readFileSync(outside, "utf8")).toBe(SECRET);
  expect(readdirSync(outputs).sort()).toEqual(["large", "link", "plain", "said"]);
  expect(step.maskedOutputs).toEqual(["said"]);
});

test("what is in the way of a masked output is removed, or said", () => {
  writeFileSync(join(outputs, "said"), SECRET);
  mkdirSync(join(outputs, ".said.masked"));
  secrets({ said: 1000 }).maskOutputs();
  expect(readFileSync(join(outputs, "said"), "utf8")).toBe("***");
});
