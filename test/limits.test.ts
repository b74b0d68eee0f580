/** The page of limits says what the code says. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const UNITS: Record<string, number> = {
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};
/** Where queues and messages are; a new limit there does not go unsaid. */
const COMPLETE = [
  "control-plane/gateway",
  "control-plane/runs",
  "agent/uplink",
  "agent/leases",
  "shared/wire",
];
/** Of no queue: how often something is tried, and how long an answer of a person's program may be. */
const ELSEWHERE = new Set(["MISSED_MAX", "RECONNECTS_MAX", "REFUSED_MAX_BYTES", "LOG_ENTRIES_MAX_BYTES"]);

const page = readFileSync(join(ROOT, "docs/limits.md"), "utf8");
const rows = [...page.matchAll(/^\| [^|]+ \| `([^`]+)` `([^`]+)` \| ([\d]+) ?(\w*) \| [^|]+ \|$/gm)].map(
  ([, file = "", name = "", count = "", unit = ""]) => ({
    file,
    name,
    value: Number(count) * (unit === "" ? 1 : (UNITS[unit] ?? Number.NaN)),
  }),
);

/** Of `const NAME = 4 * 1024 * MiB;` or `name: 64 * MiB,`: products and powers of numbers. */
function valueIn(file: string, name: string): number {
  const text = readFileSync(join(ROOT, file), "utf8");
  const written = new RegExp(`^(?:export )?(?:const )?\\s*${name}(?: =|:) ([\\d_ *]+(?:MiB)?)[;,]`, "m").exec(
    text,
  )?.[1];
  if (written === undefined) return Number.NaN;
  return written
    .replaceAll("_", "")
    .replace("MiB", String(UNITS.MiB))
    .split(/ \* /)
    .map((factor) =>
      factor
        .split("**")
        .map(Number)
        .reduce((base, power) => base ** power),
    )
    .reduce((product, factor) => product * factor);
}

test.each(rows)("$name of $file is what the page says", ({ file, name, value }) => {
  expect(valueIn(file, name)).toBe(value);
});

test("every line of the tables was read", () => {
  const lines = page.split("\n").filter((line) => line.startsWith("| ") && !line.startsWith("| what |"));
  expect(rows).toHaveLength(lines.length);
});

test.each(COMPLETE)("the page has every limit of %s", (folder) => {
  const listed = new Set(rows.map(({ name }) => name));
  const missing = readdirSync(join(ROOT, folder))
    .filter((file) => file.endsWith(".ts") && !/\.(test|fixture)\.ts$/.test(file))
    .flatMap((file) => [
      ...readFileSync(join(ROOT, folder, file), "utf8").matchAll(
        /^(?:export )?const (\w*_?MAX(?:_\w+)?) =/gm,
      ),
    ])
    .map(([, name = ""]) => name)
    .filter((name) => !name.endsWith("_MS") && !listed.has(name) && !ELSEWHERE.has(name));
  expect(missing).toEqual([]);
});
