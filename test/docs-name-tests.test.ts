/** The pages that say which test holds what: a test that was renamed or taken away is missed there. */
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

test.each(["docs/guarantees.md", "docs/security/threat-model.md"])(
  "every test that %s names is there",
  (page) => {
    const text = readFileSync(`${ROOT}/${page}`, "utf8");
    const named = [...text.matchAll(/`([\w./-]+\.test\.ts)`/g)].map(([, path]) => path!);
    expect(named.length).toBeGreaterThan(20);
    expect(named.filter((path) => !existsSync(`${ROOT}/${path}`))).toEqual([]);
  },
);

test("every line of the threat model's table names a test", () => {
  const text = readFileSync(`${ROOT}/docs/security/threat-model.md`, "utf8");
  const table = text.split("## Threats")[1]!.split("\n## ")[0]!;
  const lines = table
    .split("\n")
    .filter((line) => /^\| (?!threat|---)/.test(line) && !line.startsWith("|---"));
  expect(lines.length).toBeGreaterThan(15);
  expect(lines.filter((line) => !line.includes(".test.ts`"))).toEqual([]);
});
